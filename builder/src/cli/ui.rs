//! What the user sees while something runs: bars on a terminal, plain lines otherwise, nothing with `--quiet`.
//!
//! Everything goes to stderr; stdout is for results. [`Ui`] and [`StageBar`] are cheap to clone and may be used from
//! any thread.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar's clock and rate are redrawn.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Width that stage names are padded to, so that bars line up.
const NAME_COLUMNS: usize = 12;

/// Where progress is shown.
#[derive(Debug, Clone)]
pub struct Ui {
    shown: Shown,
    counters: Arc<Counters>,
}

#[derive(Debug, Clone)]
enum Shown {
    Nothing,
    Lines,
    Bars(MultiProgress),
}

/// What happened so far, over all stages. Numbers only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes received from the network.
    pub downloaded_bytes: AtomicU64,
    /// Files received from the network.
    pub downloaded_files: AtomicU64,
    /// Results taken from the cache.
    pub cache_hits: AtomicU64,
    /// Results that had to be made.
    pub cache_misses: AtomicU64,
}

impl Counters {
    /// Counts a finished download.
    pub fn downloaded(&self, bytes: u64) {
        self.downloaded_files.fetch_add(1, Ordering::Relaxed);
        self.downloaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a look into the cache.
    pub fn cache(&self, hit: bool) {
        let counter = if hit {
            &self.cache_hits
        } else {
            &self.cache_misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Ui {
    /// Bars if stderr is a terminal, lines if not, nothing if `quiet`.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        {
            Shown::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
        } else {
            Shown::Lines
        };
        Self {
            shown,
            counters: Arc::default(),
        }
    }

    /// Shows nothing; for tests and for use as a library.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            shown: Shown::Nothing,
            counters: Arc::default(),
        }
    }

    /// Starts to show a stage of the pipeline. Call [`StageBar::finish`] when it is done; a bar that is dropped before
    /// vanishes from the terminal.
    #[must_use]
    pub fn stage(&self, name: &str) -> StageBar {
        let bar = self.bar(name, 1);
        if matches!(self.shown, Shown::Lines) {
            self.line(&format!("{name} …"));
        }
        bar
    }

    /// Starts to show one download below its stage. It gets no plain lines: a build has hundreds.
    #[must_use]
    pub fn download(&self, name: &str, total_bytes: Option<u64>) -> StageBar {
        let bar = self.bar(name, 2);
        if let Some(total_bytes) = total_bytes {
            bar.set_total_bytes(total_bytes);
        }
        bar
    }

    /// Prints a line above the bars.
    pub fn line(&self, line: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Lines => write_stderr(line),
            Shown::Bars(bars) => bars.suspend(|| write_stderr(line)),
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn bar(&self, name: &str, level: usize) -> StageBar {
        let bar = match &self.shown {
            Shown::Bars(bars) => {
                let bar = bars.add(ProgressBar::new_spinner());
                bar.set_style(style(false));
                bar.set_prefix(format!(
                    "{:indent$}{name:NAME_COLUMNS$}",
                    "",
                    indent = (level - 1) * 2
                ));
                bar.enable_steady_tick(REDRAW_INTERVAL);
                Some(bar)
            }
            _ => None,
        };
        StageBar(Arc::new(Stage {
            ui: self.clone(),
            name: name.to_owned(),
            is_download: level > 1,
            bar,
            started: Instant::now(),
            done_bytes: AtomicU64::new(0),
            finished: AtomicBool::new(false),
        }))
    }
}

/// One stage or download while it runs.
#[derive(Debug, Clone)]
pub struct StageBar(Arc<Stage>);

#[derive(Debug)]
struct Stage {
    ui: Ui,
    name: String,
    is_download: bool,
    bar: Option<ProgressBar>,
    started: Instant,
    done_bytes: AtomicU64,
    finished: AtomicBool,
}

impl StageBar {
    /// Says how many bytes there are; from now on the bar has an end and an estimate.
    pub fn set_total_bytes(&self, total_bytes: u64) {
        if let Some(bar) = &self.0.bar {
            bar.set_style(style(true));
            bar.set_length(total_bytes);
        }
    }

    /// Says that so many more bytes are done.
    pub fn add_bytes(&self, bytes: u64) {
        self.0.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.0.bar {
            bar.inc(bytes);
        }
    }

    /// Bytes done so far.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.0.done_bytes.load(Ordering::Relaxed)
    }

    /// Says what is going on right now.
    pub fn message(&self, message: impl Into<String>) {
        let message = message.into();
        tracing::debug!(stage = self.0.name, "{message}");
        if let Some(bar) = &self.0.bar {
            bar.set_message(message);
        }
    }

    /// Time since it began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Ends it; a stage leaves one line with its time and `note` (`"from the cache"`, or nothing).
    pub fn finish(&self, note: &str) {
        if self.0.finished.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
        }
        if !self.0.is_download {
            self.0.ui.line(&self.summary(note));
        }
    }

    fn summary(&self, note: &str) -> String {
        let seconds = self.elapsed().as_secs_f64();
        let mut line = format!("{:NAME_COLUMNS$} {seconds:7.2} s", self.0.name);
        let bytes = self.done_bytes();
        if bytes > 0 {
            line += &format!("  {}", human_bytes(bytes));
        }
        if !note.is_empty() {
            line += "  ";
            line += note;
        }
        line
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(has_end: bool) -> ProgressStyle {
    let template = if has_end {
        "{prefix} [{bar:24}] {bytes:>10}/{total_bytes:10} {bytes_per_sec:>11} ETA {eta:4} {wide_msg}"
    } else {
        "{prefix} {spinner} {elapsed:>4} {wide_msg}"
    };
    // Both templates are constants of this function and are tried by a test.
    ProgressStyle::with_template(template)
        .expect("the template is well formed")
        .progress_chars("=> ")
}

/// Bytes for people: `1.5 MB`, in powers of 1000.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A closed stderr must not stop a build: nobody is left to be told.
fn write_stderr(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Lets log lines appear above the bars instead of through them.
#[derive(Debug, Clone)]
pub struct LogWriter(Ui);

impl Ui {
    /// For `tracing_subscriber::fmt().with_writer(…)`.
    #[must_use]
    pub fn log_writer(&self) -> LogWriter {
        LogWriter(self.clone())
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0.shown {
            Shown::Bars(bars) => bars.suspend(|| io::stderr().write(bytes)),
            _ => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_well_formed() {
        style(true);
        style(false);
    }

    #[test]
    fn bytes_are_told_in_powers_of_1000() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_960, "1.0 MB"),
            (1_500_000, "1.5 MB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn bars_count_and_cross_threads() {
        fn is_shared<T: Send + Sync>(_: &T) {}
        let ui = Ui::silent();
        let bar = ui.stage("fetch");
        is_shared(&ui);
        is_shared(&bar);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| bar.add_bytes(10));
            }
        });
        assert_eq!(bar.done_bytes(), 40);
        assert!(
            bar.summary("from the cache")
                .ends_with(" s  40 B  from the cache"),
            "{}",
            bar.summary("")
        );
    }
}
