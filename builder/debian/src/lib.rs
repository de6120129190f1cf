//! Debian archives: signed indexes, dependency solving, the lock file and verified downloads.
