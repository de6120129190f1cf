//! One line on every console that says what the boot is doing, rewritten in place.

use crate::boot::console::{self, Console};
use std::time::{Duration, Instant};

/// A serial line of 9600 baud writes a line in 80 ms: not more often.
const PAUSE: Duration = Duration::from_millis(400);
const COLUMNS: usize = 78;

/// The line.
#[derive(Debug, Default)]
pub struct Progress {
    consoles: Option<Vec<Console>>,
    shown: Option<(Instant, String)>,
}

impl Progress {
    /// Shows `text` instead of what was there; the same text, or one too soon, is passed over.
    pub fn show(&mut self, text: &str) {
        if let Some((when, last)) = &self.shown
            && (last == text || when.elapsed() < PAUSE)
        {
            return;
        }
        self.print(&format!("\r  {}\u{1b}[K", cut(text)));
        self.shown = Some((Instant::now(), text.to_owned()));
    }

    /// Shows `text` and leaves it.
    pub fn finish(&mut self, text: &str) {
        self.print(&format!("\r  {}\u{1b}[K\n", cut(text)));
        self.shown = None;
    }

    fn print(&mut self, text: &str) {
        for console in self.consoles.get_or_insert_with(console::open_all) {
            console.print(text);
        }
    }
}

/// One line of the screen: a longer one could not be rewritten.
fn cut(text: &str) -> String {
    if text.chars().count() <= COLUMNS {
        return text.to_owned();
    }
    let head: String = text.chars().take(COLUMNS - 1).collect();
    head + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_the_screen() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"é".repeat(200)).chars().count(), COLUMNS);
    }
}
