//! Asking a person before something is changed.

use std::io::{self, IsTerminal, Write};

use crate::error::Error;

/// What was said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asked {
    /// Only to look.
    DryRun,
    /// Go on.
    Yes,
    /// Do not.
    No,
}

/// Asks for a word, unless it was said on the command line. Without a terminal nobody can be asked, and that is an error.
pub(crate) fn ask(word: &'static str, dry_run: bool, yes: bool, out: &mut dyn Write) -> Result<Asked, Error> {
    let failed = |source: io::Error| Error::Write { source };
    if dry_run {
        writeln!(out, "Nothing was changed (--dry-run).").map_err(failed)?;
        return Ok(Asked::DryRun);
    }
    if yes {
        return Ok(Asked::Yes);
    }
    if !io::stdin().is_terminal() {
        return Err(Error::NotConfirmed { word });
    }
    write!(out, "Type {word} to go on: ").and_then(|()| out.flush()).map_err(failed)?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed)?;
    if line.trim() == word {
        return Ok(Asked::Yes);
    }
    writeln!(out, "Nothing was changed.").map_err(failed)?;
    Ok(Asked::No)
}
