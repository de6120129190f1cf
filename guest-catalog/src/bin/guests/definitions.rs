//! The catalogue of a house that runs: guests may be added or changed meanwhile.
use crate::house::House;
use guest_catalog::Catalogue;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// The catalogue as it was read last, and when each definition was written.
#[derive(Debug, Clone)]
pub struct Definitions {
    catalogue: Catalogue,
    /// By its path: an edited definition changes nothing in the folder above it.
    written: BTreeMap<PathBuf, Option<SystemTime>>,
}

impl Definitions {
    /// Begins with what was read already.
    pub fn new(house: &House, catalogue: Catalogue) -> Self {
        let written = written(house);
        Self { catalogue, written }
    }

    /// Reads the definitions anew if one of them changed. Where one is wrong the old ones stay; who reads it next tells.
    pub fn refresh(&mut self, house: &House) {
        let now = written(house);
        if now != self.written
            && let Ok(catalogue) = house.catalogue()
        {
            (self.catalogue, self.written) = (catalogue, now);
        }
    }

    /// What was read last.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }
}

fn written(house: &House) -> BTreeMap<PathBuf, Option<SystemTime>> {
    let folders = std::fs::read_dir(house.guests());
    let folders = folders.into_iter().flatten().flatten();
    let definitions = folders.map(|folder| folder.path().join("guest.toml"));
    let time = |path: &PathBuf| std::fs::metadata(path)?.modified();
    definitions
        .map(|path| {
            let time = time(&path).ok();
            (path, time)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    #[test]
    fn an_edited_definition_is_noticed() {
        let (_dir, house, _) = crate::testing::house(&[("tiny", 1)]);
        let before = written(&house);
        assert_eq!(before.len(), 1);
        assert_eq!(written(&house), before);
        let (path, time) = before.first_key_value().unwrap();
        let file = std::fs::File::options().append(true).open(path).unwrap();
        let later = time.unwrap() + Duration::from_secs(5);
        file.set_modified(later).unwrap();
        assert_ne!(written(&house), before);
        std::fs::remove_file(path).unwrap();
        assert_ne!(written(&house), before);
    }

    #[test]
    fn what_is_added_or_edited_is_seen_and_what_is_wrong_is_not() {
        let (_dir, house, catalogue) = crate::testing::house(&[("tiny", 1)]);
        let mut definitions = Definitions::new(&house, catalogue);
        let names = |definitions: &Definitions| -> Vec<String> {
            let entries = definitions.catalogue().entries().iter();
            entries.map(|entry| entry.guest.name.to_string()).collect()
        };
        let text = fs::read_to_string(house.guests().join("tiny/guest.toml")).unwrap();
        let second = house.guests().join("web");
        fs::create_dir_all(&second).unwrap();
        let text = text.replace("\"tiny\"\ndescription", "\"web\"\ndescription");
        fs::write(
            second.join("guest.toml"),
            text.replace("order = 1", "order = 2"),
        )
        .unwrap();
        definitions.refresh(&house);
        assert_eq!(names(&definitions), ["tiny", "web"]);
        fs::write(second.join("guest.toml"), "no definition").unwrap();
        definitions.refresh(&house);
        assert_eq!(names(&definitions), ["tiny", "web"]);
        fs::remove_dir_all(&second).unwrap();
        definitions.refresh(&house);
        assert_eq!(names(&definitions), ["tiny"]);
    }
}
