//! Tells a person what takes long: a spinner on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One step that takes a while. It says that it begins, may say where it is, and says how long it took.
#[derive(Debug)]
pub struct Step {
    title: String,
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Announces the step.
    pub fn begin(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(title.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            say(&format!("{title} ..."));
        }
        Self { title, begun: Instant::now(), bar }
    }

    /// Shows where the step is; only a terminal shows it, because a log needs no such detail.
    pub fn at(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(detail.to_owned());
        }
    }

    /// Ends the step.
    pub fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let millis = self.begun.elapsed().as_millis();
        say(&format!("{}: done in {}.{} s", self.title, millis / 1000, millis % 1000 / 100));
    }
}

/// Writes one line to standard error. A closed standard error is no reason to fail.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "lab: {line}");
}
