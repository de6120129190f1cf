//! Rows and the table of them.

use std::{fmt::Write as _, time::Duration};

/// A measurement.
pub struct Row {
    pub scheme: String,
    pub rtt_ms: f64,
    pub mbit: f64,
    pub requests: u64,
    pub bytes: u64,
    pub stall: Duration,
}

impl Row {
    /// Its own bytes at the line's full rate, and one round trip.
    fn limit(&self) -> f64 {
        self.bytes as f64 * 8.0 / (self.mbit * 1e6) + self.rtt_ms / 1e3
    }

    /// As a row of the table.
    pub fn markdown(&self) -> String {
        let stall = self.stall.as_secs_f64();
        format!(
            "| {} | {} | {} | {} | {:.2} | {stall:.2} | {:.2} | {:.2} |",
            self.scheme,
            self.rtt_ms,
            self.mbit,
            self.requests,
            self.bytes as f64 / 1e6,
            self.limit(),
            stall / self.limit()
        )
    }
}

/// All of it in Markdown.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::from(
        "| scheme | RTT ms | Mbit/s | requests | MB | stall s | bytes/bandwidth + 1 RTT | ratio |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        // A String takes everything.
        let _ = writeln!(text, "{}", row.markdown());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_to_the_physical_limit() {
        let row = Row {
            scheme: "x".into(),
            rtt_ms: 50.0,
            mbit: 100.0,
            requests: 7,
            bytes: 12_500_000,
            stall: Duration::from_millis(2100),
        };
        assert_eq!(
            row.markdown(),
            "| x | 50 | 100 | 7 | 12.50 | 2.10 | 1.05 | 2.00 |"
        );
        assert!(render(&[row]).ends_with("| 2.00 |\n"));
    }
}
