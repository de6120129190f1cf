//! A PC's screen as text, while it is in VGA text mode: 80 x 25 cells of a character and its colours, two bytes each.
//!
//! The 25 rows that are shown can begin anywhere in the 32 KiB of the text window: systems scroll by moving that start (the CRT controller's
//! registers 0x0C and 0x0D), OpenBSD for one. The start cannot be asked for without disturbing the guest, so all rows are read; those
//! that have scrolled away stand above.

use std::fmt::Write as _;

/// Where the cells are in the machine's memory.
const TEXT_ADDRESS: u64 = 0xB_8000;
const COLUMNS: usize = 80;
/// As many as the window has.
const ROWS: usize = 32 * 1024 / 2 / COLUMNS;

/// What QEMU's monitor is asked for the cells.
pub fn command() -> String {
    format!("xp /{}hx {TEXT_ADDRESS:#x}", COLUMNS * ROWS)
}

/// The monitor's answer → rows of text, from the first to the last that is not blank. Each word is a cell, its low byte the character. Nonsense while the machine shows
/// graphics.
pub fn text_of(dump: &str) -> String {
    let cells = dump.lines().flat_map(|line| {
        let words = line.split_once(':').map_or("", |(_, words)| words);
        words
            .split_ascii_whitespace()
            .filter_map(|word| u16::from_str_radix(word.trim_start_matches("0x"), 16).ok())
    });
    let mut text = String::new();
    for (index, cell) in cells.take(COLUMNS * ROWS).enumerate() {
        if index > 0 && index % COLUMNS == 0 {
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        let byte = (cell & 0xFF) as u8;
        let shown = if byte.is_ascii_graphic() { byte } else { b' ' };
        // Writing to a string cannot fail.
        let _ = write!(text, "{}", char::from(shown));
    }
    text.trim_end().trim_start_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_becomes_text() {
        let mut words = vec![0x0720u16; COLUMNS * ROWS];
        for (at, c) in [
            (0, b'A'),
            (1, b':'),
            (2, b'\\'),
            (3, b'>'),
            (80, b'x'),
            (81, 0xB3),
        ] {
            words[at] = 0x0700 | u16::from(c);
        }
        let mut dump = String::new();
        for (index, row) in words.chunks(8).enumerate() {
            let row: Vec<String> = row.iter().map(|word| format!("{word:#06x}")).collect();
            dump += &format!("{:016x}: {}\r\n", 0xB8000 + index * 16, row.join(" "));
        }
        assert_eq!(text_of(&dump), "A:\\>\nx");
        // Scrolled by its start: the screen's last row is far below the 25th.
        let scrolled = |row: usize| format!("{:016x}: 0x0753 0x073f\r\n", 0xB8000 + row * 160);
        let blank = format!("0: {}\r\n", "0x0720 ".repeat(COLUMNS));
        let dump = blank.repeat(60) + &scrolled(60);
        assert_eq!(text_of(&dump), "S?");
        assert!(command().starts_with("xp /16320hx "), "{}", command());
        assert_eq!(text_of("Cannot access memory\n"), "");
    }
}
