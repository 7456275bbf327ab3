//! Asking a person before something is changed.

use std::io::{self, IsTerminal, Write};

use crate::{error::Error, output::Format};

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

/// Says a sentence to a person: beside the answer, where that is for a program.
pub(crate) fn say(format: Format, out: &mut dyn Write, text: &str) -> Result<(), Error> {
    match format {
        Format::Table => writeln!(out, "{text}").and_then(|()| out.flush()),
        Format::Json | Format::Yaml | Format::Csv => writeln!(io::stderr(), "{text}"),
    }
    .map_err(|source| Error::Write { source })
}

/// Asks for a word, unless it was said on the command line. Without a terminal nobody can be asked, and that is an error.
pub(crate) fn ask(
    word: &'static str,
    dry_run: bool,
    yes: bool,
    format: Format,
    out: &mut dyn Write,
) -> Result<Asked, Error> {
    let failed = |source: io::Error| Error::Write { source };
    if dry_run {
        say(format, out, "Nothing was changed (--dry-run).")?;
        return Ok(Asked::DryRun);
    }
    if yes {
        return Ok(Asked::Yes);
    }
    if !io::stdin().is_terminal() {
        return Err(Error::NotConfirmed { word });
    }
    say(format, out, &format!("Type {word} to go on:"))?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed)?;
    if line.trim() == word {
        return Ok(Asked::Yes);
    }
    say(format, out, "Nothing was changed.")?;
    Ok(Asked::No)
}
