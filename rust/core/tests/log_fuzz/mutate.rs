//! A log that is damaged on purpose, and what must hold of every reader of it.
//!
//! # Design
//!
//! A run is a function of its bytes. They are read as edits of a real log: some act on records, which
//! are sealed again with the checksums that fit, so that what lies behind the checksums is reached
//! too; the others act on the bytes of the files. The fuzzer and the seeded test share this file.

use std::fs;
use std::path::Path;

use k15_core::Error;
use k15_core::store::{Opening, Options, Order, Snapshot, Store, Sync, repair, verify};

const FILE_HEADER: usize = 128;
const HEADER: usize = 32;
/// Numbers at which arithmetic and allocation go wrong.
const ODD: [u64; 12] = [
    0,
    1,
    7,
    255,
    4096,
    65535,
    65536,
    0x7fff_ffff,
    0xffff_fff8,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

/// Files of a log, by name.
pub type Files = Vec<(String, Vec<u8>)>;

/// The log files of a directory.
pub fn read(directory: &Path) -> Files {
    let mut files: Files = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "log"))
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

struct Record {
    header: [u8; HEADER],
    payload: Vec<u8>,
}

struct File {
    name: String,
    size: usize,
    header: Vec<u8>,
    records: Vec<Record>,
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn parse(name: &str, bytes: &[u8]) -> File {
    let (committed, mut at, mut records) = (word(bytes, 64), FILE_HEADER, Vec::new());
    while at < committed {
        let length = word(bytes, at + 8).div_ceil(8) * 8;
        let payload = bytes[at + HEADER..at + HEADER + word(bytes, at + 8)].to_vec();
        records.push(Record { header: bytes[at..at + HEADER].try_into().unwrap(), payload });
        at += HEADER + length;
    }
    File { name: name.into(), size: bytes.len(), header: bytes[..FILE_HEADER].to_vec(), records }
}

/// Files of sealed records. Those that no longer fit are left out.
fn seal(files: &mut [File], renumber: bool) -> Files {
    let mut number =
        files.first().map_or(0, |f| u64::from_le_bytes(f.header[32..40].try_into().unwrap()));
    let mut sealed = Vec::new();
    for file in files {
        let mut bytes = file.header.clone();
        if renumber {
            bytes[32..40].copy_from_slice(&number.to_le_bytes());
        }
        let checked = [&bytes[..12], &bytes[16..64]].concat();
        bytes[12..16].copy_from_slice(&crc32c::crc32c(&checked).to_le_bytes());
        for record in &mut file.records {
            let padded = record.payload.len().div_ceil(8) * 8;
            if bytes.len() + HEADER + padded > file.size {
                break;
            }
            let mut payload = record.payload.clone();
            payload.resize(padded, 0);
            let header = &mut record.header;
            header[8..12]
                .copy_from_slice(&u32::try_from(record.payload.len()).unwrap().to_le_bytes());
            if renumber {
                header[16..24].copy_from_slice(&number.to_le_bytes());
            }
            header[4..8].copy_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
            let sum = crc32c::crc32c(&header[8..HEADER]).to_le_bytes();
            header[..4].copy_from_slice(&sum);
            bytes.extend_from_slice(header);
            bytes.extend_from_slice(&payload);
            number += 1;
        }
        for at in [64, 72] {
            let end = u32::try_from(bytes.len()).unwrap().to_le_bytes();
            bytes[at..at + 4].copy_from_slice(&end);
            bytes[at + 4..at + 8].copy_from_slice(&crc32c::crc32c(&end).to_le_bytes());
        }
        bytes.resize(file.size, 0);
        sealed.push((file.name.clone(), bytes));
    }
    sealed
}

/// The input as numbers; zeros behind its end.
struct Draws<'a>(&'a [u8]);

impl Draws<'_> {
    fn next(&mut self) -> usize {
        let taken = self.0.len().min(2);
        let (now, rest) = self.0.split_at(taken);
        self.0 = rest;
        now.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() % bound.max(1)
    }

    fn number(&mut self) -> u64 {
        let kind = self.next();
        if kind.is_multiple_of(3) { self.next() as u64 } else { ODD[kind % ODD.len()] }
    }
}

fn edit_records(files: &mut [File], draws: &mut Draws<'_>) {
    let at = draws.below(files.len());
    let other = draws.below(files.len());
    let place = draws.below(files[at].records.len());
    let from = draws.below(files[other].records.len());
    let copy = files[other]
        .records
        .get(from)
        .map(|r| Record { header: r.header, payload: r.payload.clone() });
    let (Some(copy), false) = (copy, files[at].records.is_empty()) else { return };
    let records = &mut files[at].records;
    match draws.below(8) {
        0 => records[place] = copy,
        1 => records.insert(place, copy),
        2 => drop(records.remove(place)),
        3 => records[place].header[12] = u8::try_from(draws.below(20)).unwrap(),
        4 => records[place].header[24..32].copy_from_slice(&draws.number().to_le_bytes()),
        5 => records[place].payload.resize(draws.below(300), 1),
        _ => {
            let payload = &mut records[place].payload;
            let width = [1, 2, 4, 8][draws.below(4)];
            // Fields come first: most edits go there.
            let reach = if draws.below(4) == 0 { payload.len() } else { payload.len().min(64) };
            let start = draws.below(reach) / width * width;
            if start + width <= payload.len() {
                let number = draws.number().to_le_bytes();
                payload[start..start + width].copy_from_slice(&number[..width]);
            }
        }
    }
}

fn edit_bytes(files: &mut Files, draws: &mut Draws<'_>) {
    let at = draws.below(files.len());
    let Some((_, bytes)) = files.get_mut(at) else { return };
    let place =
        if draws.below(3) == 0 { draws.below(FILE_HEADER) } else { draws.below(bytes.len()) };
    match draws.below(5) {
        0 => drop(files.remove(at)),
        1 => bytes.truncate(place),
        2 => {
            let stop = (place + 1 + draws.below(600)).min(bytes.len());
            bytes.get_mut(place..stop).unwrap_or_default().fill(0);
        }
        3 => {
            let number = draws.number().to_le_bytes();
            for (byte, new) in bytes.iter_mut().skip(place).zip(number) {
                *byte = new;
            }
        }
        _ => {
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << draws.below(8);
            }
        }
    }
}

/// The log that the input makes of a real one; with a first byte of 255, the input itself as a file.
pub fn mutate(whole: &Files, input: &[u8]) -> Files {
    if let Some((255, bytes)) = input.split_first() {
        let mut bytes = bytes.to_vec();
        bytes.resize(4096, 0);
        return vec![(whole[0].0.clone(), bytes)];
    }
    let mut draws = Draws(input);
    let mut parsed: Vec<File> = whole.iter().map(|(name, bytes)| parse(name, bytes)).collect();
    let how = draws.next();
    for _ in 0..how % 5 {
        edit_records(&mut parsed, &mut draws);
    }
    let mut files = if how % 5 == 0 { whole.clone() } else { seal(&mut parsed, how & 64 == 0) };
    for _ in 0..if how % 5 == 0 { 1 + how / 5 % 4 } else { how / 128 % 2 } {
        edit_bytes(&mut files, &mut draws);
    }
    files
}

fn options(directory: &Path) -> Options {
    Options {
        directory: Some(directory.into()),
        capacity_bytes: 32 << 12,
        file_bytes: Some(4096),
        sync: Sync::Never,
        ..Options::default()
    }
}

/// Use a store that opened: it must answer, and take or refuse more, but not fall over.
fn use_it(directory: &Path) -> Result<(), Error> {
    let mut store = Store::open(&options(directory))?;
    for id in store.pending_groups(u32::MAX) {
        store.prompt_of(id)?;
        for member in store.members(id)? {
            store.trajectory(member)?;
        }
    }
    store.stats();
    for lease in store.lease(2, 0.0, 1.0, Order::Longest).unwrap_or_default() {
        let n = u32::try_from(lease.input_ids.len() - lease.prompt_length).unwrap();
        // May be refused: the log may say that its version is the largest there is.
        store.append(lease.trajectory_id, lease.epoch, n, &[1], &[0.0], None, 9).ok();
    }
    store.mark(9).ok();
    Ok(())
}

/// Write the files and read them in every way. Panics if a reader's answers contradict each other.
/// Whether the log was refused.
pub fn read_in_every_way(files: &Files, directory: &Path) -> bool {
    fs::create_dir_all(directory).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).unwrap();
    }
    let verified = verify(directory);
    if let Ok(snapshot) = Snapshot::open(directory, 1) {
        snapshot.inspect();
        for id in snapshot.trajectory_ids() {
            snapshot.segments(id).unwrap();
        }
    }
    let Ok(verified) = verified else { return true };
    let refused = matches!(verified.opening, Opening::Refused(_));
    if !refused {
        use_it(directory).unwrap();
        return false;
    }
    assert!(!verified.damages.is_empty(), "a refusal names what is damaged: {verified:?}");
    Store::open(&options(directory)).err().unwrap();
    if let Ok(done) = repair(directory) {
        assert!(!done.set_aside.is_empty());
        let after = verify(directory).unwrap();
        assert!(after.damages.is_empty(), "{:?}", after.damages);
        use_it(directory).unwrap();
    }
    true
}
