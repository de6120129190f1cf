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
    /// Shows `text` instead of what was there. The same text is passed over, and one that differs in numbers only if it
    /// comes too soon; anything else may be said once, so it is shown at once.
    pub fn show(&mut self, text: &str) {
        if let Some((when, last)) = &self.shown
            && (last == text
                || when.elapsed() < PAUSE && without_numbers(last).eq(without_numbers(text)))
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

/// What a text says besides its numbers.
fn without_numbers(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|c| !c.is_ascii_digit())
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
    fn what_is_said_once_is_shown() {
        let mut progress = Progress {
            consoles: Some(Vec::new()),
            shown: None,
        };
        let mut shown = |text: &str| {
            progress.show(text);
            progress
                .shown
                .as_ref()
                .is_some_and(|(_, last)| last == text)
        };
        assert!(shown("network: no carrier (59 s left)"));
        assert!(
            !shown("network: no carrier (58 s left)"),
            "a number, too soon"
        );
        assert!(shown("http://a: no connection: Connection refused"));
    }

    #[test]
    fn lines_fit_the_screen() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"é".repeat(200)).chars().count(), COLUMNS);
    }
}
