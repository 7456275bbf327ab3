//! Short commands of the machine (`ip`, `nft`, `ctr`, ...), run to their end.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a command and returns what it printed; a failure carries what it complained about.
pub(crate) fn checked(program: &str, args: &[&str]) -> Result<String> {
    with_input(program, args, "")
}

/// The same with something on its standard input.
pub(crate) fn with_input(program: &str, args: &[&str], input: &str) -> Result<String> {
    let what = || format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", what()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Who does not read it says why in its own words.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("running {}", what()))?;
    if !output.status.success() {
        bail!("{} failed: {}", what(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
