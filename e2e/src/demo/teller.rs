//! Tells the person at the terminal what happens: numbered steps, commands with their answers, and how long things took.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The teller of one run.
#[derive(Debug)]
pub(super) struct Teller {
    begun: Instant,
    step: u32,
    colour: bool,
    live: bool,
}

impl Teller {
    pub(super) fn new() -> Self {
        let live = std::io::stderr().is_terminal();
        Self { begun: Instant::now(), step: 0, colour: std::io::stdout().is_terminal(), live }
    }

    /// Time since the first word.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Begins the next step.
    pub(super) fn step(&mut self, title: &str) {
        self.step += 1;
        let seconds = self.begun.elapsed().as_secs();
        let line = format!("{:>2}. {title}", self.step);
        print(&format!("\n{}  {}", self.bold(&line), self.dim(&format!("[{}:{:02}]", seconds / 60, seconds % 60))));
    }

    /// A sentence of the story.
    pub(super) fn say(&self, text: &str) {
        for line in text.lines() {
            print(&format!("    {line}"));
        }
    }

    /// A command that somebody types, with what it reads.
    pub(super) fn command(&self, command: &str, input: &str) {
        print(&format!("    {}", self.bold(&format!("$ {command}"))));
        for line in input.lines() {
            print(&self.dim(&format!("      | {line}")));
        }
    }

    /// What a command answered, at most so many lines.
    pub(super) fn answer(&self, text: &str, most: usize) {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().take(most) {
            print(&format!("      {}", line.trim_end()));
        }
        if lines.len() > most {
            print(&self.dim(&format!("      ... {} more", lines.len() - most)));
        }
    }

    /// Something that went as it should.
    pub(super) fn fine(&self, text: &str) {
        print(&format!("    {} {text}", self.paint("32", "ok")));
    }

    /// Something that takes a while: a spinner on a terminal, a line elsewhere.
    pub(super) fn wait(&self, what: impl Into<String>) -> Wait {
        let what = what.into();
        if !self.live {
            print(&self.dim(&format!("    .. {what}")));
        }
        self.wait_briefly(what)
    }

    /// Something that takes a second or two: a spinner on a terminal, nothing elsewhere.
    pub(super) fn wait_briefly(&self, what: impl Into<String>) -> Wait {
        let bar = self.live.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("    {spinner} {msg} [{elapsed}]") {
                bar.set_style(style);
            }
            bar.set_message(what.into());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Wait { begun: Instant::now(), bar }
    }

    /// Ends a wait with what came of it.
    pub(super) fn done(&self, wait: Wait, text: &str) {
        let took = wait.end();
        self.fine(&format!("{text} {}", self.dim(&format!("({})", seconds(took)))));
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A wait that goes on. A failed step drops it, and the spinner goes with it.
#[derive(Debug)]
pub(super) struct Wait {
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl Wait {
    /// Shows where it is; only a terminal shows that.
    pub(super) fn at(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    /// Ends it and says how long it took.
    pub(super) fn end(self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `3.1 s`.
pub(super) fn seconds(time: Duration) -> String {
    let tenths = time.as_millis().div_ceil(100);
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// Writes one line. A closed standard output (`| head`) is no reason to fail.
pub(super) fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
