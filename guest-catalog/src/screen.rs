//! A PC's screen as text, while it is in VGA text mode: 80 x 25 cells of a character and its colours, two bytes each.
use std::fmt::Write as _;

/// Where the cells are in the machine's memory.
const TEXT_ADDRESS: u64 = 0xB_8000;
const COLUMNS: usize = 80;
const ROWS: usize = 25;

/// What QEMU's monitor is asked for the cells.
pub fn command() -> String {
    format!("xp /{}hx {TEXT_ADDRESS:#x}", COLUMNS * ROWS)
}

/// The monitor's answer → rows of text. Each word is a cell, its low byte the character. Nonsense while the machine shows
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
    text.truncate(text.trim_end().len());
    text
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
        assert_eq!(text_of("Cannot access memory\n"), "");
    }
}
