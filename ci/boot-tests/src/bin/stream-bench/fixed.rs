//! The 2005 design (HTTP-FUSE KNOPPIX): the image is cut every 256 KiB, each block is a file, compressed by gzip -6; blocks
//! are fetched when they are first read, over at most four connections, and kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::{
    Outcome,
    map::LAYERS,
    scheme::{Source, agent},
    trace::ImageRead,
};

pub const BLOCK_BYTES: usize = 256 << 10;
const CONNECTIONS: usize = 4;

/// Cuts the images in `folder/raw` into `folder/www/fixed/<layer>/<number>`.
pub fn pack(folder: &Path) -> Outcome {
    let www = folder.join("www/fixed");
    fs::create_dir_all(&www)?;
    let mut index = String::new();
    for layer in LAYERS {
        let mut image = File::open(folder.join(format!("raw/{layer}.erofs")))?;
        let out = www.join(layer);
        fs::create_dir_all(&out)?;
        let blocks = image.metadata()?.len().div_ceil(BLOCK_BYTES as u64);
        index += &format!("{layer} {blocks}\n");
        for number in 0..blocks {
            let mut block = Vec::with_capacity(BLOCK_BYTES);
            (&mut image)
                .take(BLOCK_BYTES as u64)
                .read_to_end(&mut block)?;
            let mut gz = GzEncoder::new(Vec::new(), Compression::new(6));
            gz.write_all(&block)?;
            fs::write(out.join(number.to_string()), gz.finish()?)?;
        }
    }
    fs::write(www.join("index"), index)?;
    Ok(())
}

pub struct Fixed {
    agent: ureq::Agent,
    base: String,
    blocks: BTreeMap<String, u64>,
    have: BTreeSet<(String, u64)>,
}

impl Fixed {
    pub fn open(base: &str) -> Outcome<Self> {
        let agent = agent();
        let index = agent
            .get(format!("{base}/fixed/index"))
            .call()?
            .into_body()
            .read_to_string()?;
        let blocks = index
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(layer, blocks)| Ok((layer.to_owned(), blocks.parse()?)))
            .collect::<Outcome<_>>()?;
        Ok(Self {
            agent,
            base: base.to_owned(),
            blocks,
            have: BTreeSet::new(),
        })
    }
}

impl Source for Fixed {
    fn read(&mut self, read: &ImageRead) -> Outcome {
        let block = BLOCK_BYTES as u64;
        let end = self.blocks.get(&read.image).copied().unwrap_or(0);
        let last = (read.offset + read.length).div_ceil(block).min(end);
        let missing: Vec<u64> = (read.offset / block..last)
            .filter(|number| !self.have.contains(&(read.image.clone(), *number)))
            .collect();
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let fetch_all = || {
            while let Some(number) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let url = format!("{}/fixed/{}/{number}", self.base, read.image);
                if let Err(error) = fetch(&self.agent, &url) {
                    let mut failure = failure.lock().unwrap_or_else(|poison| poison.into_inner());
                    *failure = Some(format!("`{url}`: {error}"));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..missing.len().min(CONNECTIONS) {
                scope.spawn(fetch_all);
            }
            fetch_all();
        });
        if let Some(error) = failure
            .into_inner()
            .unwrap_or_else(|poison| poison.into_inner())
        {
            return Err(error.into());
        }
        let image = &read.image;
        self.have
            .extend(missing.iter().map(|number| (image.clone(), *number)));
        Ok(())
    }
}

/// Fetches and unpacks a block.
fn fetch(agent: &ureq::Agent, url: &str) -> Outcome {
    let body = agent.get(url).call()?.into_body().into_reader();
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut unpacked = GzDecoder::new(body).take(BLOCK_BYTES as u64 + 1);
    unpacked.read_to_end(&mut block)?;
    // To its very end, so that the connection can be used again.
    std::io::copy(
        &mut unpacked.into_inner().into_inner(),
        &mut std::io::sink(),
    )?;
    if block.is_empty() || block.len() > BLOCK_BYTES {
        return Err(format!("has {} bytes", block.len()).into());
    }
    Ok(())
}
