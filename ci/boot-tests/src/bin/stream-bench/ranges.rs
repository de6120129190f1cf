//! Range reads of a compressed image: each read of the kernel's that the page cache cannot serve is a request.

use std::{collections::BTreeSet, io};

use super::{
    Outcome,
    scheme::{Source, agent},
    trace::ImageRead,
};

const PAGE_BYTES: u64 = 4096;

pub struct Ranges {
    agent: ureq::Agent,
    url: String,
    have: BTreeSet<u64>,
}

impl Ranges {
    pub fn open(base: &str) -> Self {
        Self {
            agent: agent(),
            url: format!("{base}/all.squashfs"),
            have: BTreeSet::new(),
        }
    }
}

impl Source for Ranges {
    fn read(&mut self, read: &ImageRead) -> Outcome {
        let pages = read.offset / PAGE_BYTES..(read.offset + read.length).div_ceil(PAGE_BYTES);
        let missing: Vec<u64> = pages.filter(|page| !self.have.contains(page)).collect();
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else {
            return Ok(());
        };
        let range = format!(
            "bytes={}-{}",
            first * PAGE_BYTES,
            (last + 1) * PAGE_BYTES - 1
        );
        let answer = self.agent.get(&self.url).header("Range", &range).call()?;
        if answer.status() != 206 {
            return Err(format!("`{}`, {range}: {}", self.url, answer.status()).into());
        }
        io::copy(&mut answer.into_body().into_reader(), &mut io::sink())?;
        self.have.extend(missing);
        Ok(())
    }
}
