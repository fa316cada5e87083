//! A disk that loses power. What was synced is there afterwards; of what was not, each sector and
//! each name is there or not, as the seed decides.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::disk::Disk;
use super::map::Map;
use crate::noise;

/// What a disk writes at once or not at all.
const SECTOR: usize = 512;

/// Files of a directory by name.
pub(super) type Image = BTreeMap<String, Vec<u8>>;

/// The files lie in a directory of the host and are mapped from there: that is the page cache. What
/// the simulated disk has of them is kept beside.
pub(super) struct SimDisk {
    boot: [u8; 16],
    state: Mutex<State>,
}

struct State {
    seed: u64,
    draws: u64,
    /// What would be left, had power failed at some of the instants so far.
    images: Vec<Image>,
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    /// Changes of names that were not synced.
    pending: Vec<Change>,
}

struct Inode {
    cached: File,
    /// None: not even the length is on the disk.
    durable: Option<Vec<u8>>,
}

enum Change {
    Name(String, u64),
    Rename(String, String),
    Remove(String),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Name(name, inode) => _ = names.insert(name.clone(), *inode),
            Self::Remove(name) => _ = names.remove(name),
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

impl SimDisk {
    /// A disk that has what is in a directory.
    pub(super) fn new(directory: &Path, boot: u8, seed: u64) -> Self {
        let (mut inodes, mut names) = (BTreeMap::new(), BTreeMap::new());
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let cached = File::open(&path).unwrap();
            let inode = cached.metadata().unwrap().ino();
            names.insert(name(&path), inode);
            inodes.insert(inode, Inode { cached, durable: Some(fs::read(&path).unwrap()) });
        }
        let (images, pending) = (Vec::new(), Vec::new());
        let state = State { seed, draws: 0, images, inodes, names, pending };
        Self { boot: [boot; 16], state: Mutex::new(state) }
    }

    /// What was left where power failed, since the last time that this was asked.
    pub(super) fn failures(&self) -> Vec<Image> {
        std::mem::take(&mut self.state.lock().unwrap().images)
    }

    /// Power fails now.
    pub(super) fn fail(&self) -> Image {
        self.state.lock().unwrap().tear()
    }

    fn during<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock().unwrap();
        state.instant();
        let done = work(&mut state);
        state.instant();
        done
    }
}

impl State {
    fn draw(&mut self, n: usize) -> usize {
        self.draws += 1;
        let place = noise::uniform(self.seed, self.draws, 0) * n as f64;
        (0..n).rev().find(|&at| at as f64 <= place).unwrap_or(0)
    }

    fn instant(&mut self) {
        if self.draw(4) == 0 {
            let image = self.tear();
            self.images.push(image);
        }
        // Now and then the kernel writes something back.
        if !self.inodes.is_empty() && self.draw(3) == 0 {
            let inodes: Vec<u64> = self.inodes.keys().copied().collect();
            let inode = inodes[self.draw(inodes.len())];
            let image = self.torn(inode);
            self.inodes.get_mut(&inode).unwrap().durable = Some(image);
        }
    }

    /// What is on the disk if power fails now.
    fn tear(&mut self) -> Image {
        let mut names = self.names.clone();
        for at in 0..self.pending.len() {
            if self.draw(2) == 0 {
                self.pending[at].apply(&mut names);
            }
        }
        names.into_iter().map(|(name, inode)| (name, self.torn(inode))).collect()
    }

    /// Each sector of a file as it was synced, or as it is now.
    fn torn(&mut self, inode: u64) -> Vec<u8> {
        let (now, old) = (self.cached(inode), self.inodes[&inode].durable.clone());
        let share = self.draw(3);
        if old.is_none() && share == 0 {
            return Vec::new();
        }
        let mut torn = old.unwrap_or_else(|| vec![0; now.len()]);
        torn.resize(now.len(), 0);
        for from in (0..now.len()).step_by(SECTOR) {
            let is_new = share == 2 || share == 1 && self.draw(2) == 0;
            if is_new {
                let to = now.len().min(from + SECTOR);
                torn[from..to].copy_from_slice(&now[from..to]);
            }
        }
        torn
    }

    fn cached(&self, inode: u64) -> Vec<u8> {
        let file = &self.inodes[&inode].cached;
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

impl Disk for SimDisk {
    fn boot(&self) -> [u8; 16] {
        self.boot
    }

    fn create(&self, path: &Path, bytes: usize) -> io::Result<Map> {
        self.during(|state| {
            let file =
                File::options().create(true).truncate(true).read(true).write(true).open(path)?;
            file.set_len(bytes as u64)?;
            let inode = file.metadata()?.ino();
            state.inodes.insert(inode, Inode { cached: file.try_clone()?, durable: None });
            state.pending.push(Change::Name(name(path), inode));
            Map::file(&file)
        })
    }

    fn sync(&self, path: &Path, _map: &Map, from: usize, to: usize) -> io::Result<()> {
        self.during(|state| {
            let inode = File::open(path)?.metadata()?.ino();
            let now = state.cached(inode);
            let durable = &mut state.inodes.get_mut(&inode).unwrap().durable;
            let durable = durable.get_or_insert_default();
            durable.resize(now.len(), 0);
            let (from, to) = (from / SECTOR * SECTOR, to.next_multiple_of(SECTOR).min(now.len()));
            durable[from..to].copy_from_slice(&now[from..to]);
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.during(|state| {
            state.pending.push(Change::Rename(name(from), name(to)));
            fs::rename(from, to)
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.during(|state| {
            state.pending.push(Change::Remove(name(path)));
            fs::remove_file(path)
        })
    }

    fn sync_directory(&self, _directory: &Path) -> io::Result<()> {
        self.during(|state| {
            for change in std::mem::take(&mut state.pending) {
                change.apply(&mut state.names);
            }
            Ok(())
        })
    }
}

/// Make a directory of what a disk had.
pub(super) fn restore(image: &Image, directory: &Path) -> PathBuf {
    fs::create_dir(directory).unwrap();
    for (name, bytes) in image {
        fs::write(directory.join(name), bytes).unwrap();
    }
    directory.to_owned()
}
