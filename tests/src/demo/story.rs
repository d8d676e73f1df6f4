//! The demo's output: short titles, and below each what was observed.

use std::{
    cell::Cell,
    io::{IsTerminal as _, Write as _, stdout},
    time::Duration,
};

use anyhow::Result;

/// Width at which long lines are folded.
const WIDTH: usize = 92;

/// The demo's output so far.
pub(super) struct Story {
    lines: Cell<usize>,
    bold: (&'static str, &'static str),
    tick: &'static str,
}

impl Story {
    /// Prints the title of the demo and `lead`, which says what is to be seen.
    pub(super) fn begin(lead: &str) -> Result<Self> {
        let colours = stdout().is_terminal();
        let bold = if colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let tick = if colours { "\x1b[32mok\x1b[0m" } else { "ok" };
        let story = Self { lines: Cell::new(0), bold, tick };
        print(&format!(
            "{}Sluice: mutual TLS between pods, without sidecars, iptables or restarts{}\n{lead}",
            story.bold.0, story.bold.1
        ))?;
        Ok(story)
    }

    pub(super) fn section(&self, title: &str) -> Result<()> {
        print(&format!("\n{}{title}{}\n", self.bold.0, self.bold.1))
    }

    /// Prints one observation.
    pub(super) fn line(&self, text: &str) -> Result<()> {
        self.lines.set(self.lines.get() + 1);
        let mut folded = String::new();
        for line in fold(text, WIDTH) {
            let lead = if folded.is_empty() { format!("  {} ", self.tick) } else { " ".repeat(5) };
            folded.extend([lead.as_str(), &line, "\n"]);
        }
        print(&folded)
    }

    /// Prints the output of a program, indented.
    pub(super) fn text(lead: &str, text: &str) -> Result<()> {
        let mut indented = format!("     {lead}\n");
        for line in text.lines() {
            indented.extend(["       ", line, "\n"]);
        }
        print(&indented)
    }

    pub(super) fn end(self, took: Duration) -> Result<()> {
        let lines = self.lines.get();
        print(&format!("\nAll {lines} observations were true, in {:.1} s.\n", took.as_secs_f64()))
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn fold(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { continue };
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_folded_between_words() {
        assert_eq!(fold("one two three", 8), ["one two", "three"]);
        assert_eq!(fold("unbreakable", 3), ["unbreakable"]);
    }
}
