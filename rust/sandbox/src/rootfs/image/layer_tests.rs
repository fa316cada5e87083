use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("k15-layer-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("root")).unwrap();
        Self(path)
    }

    fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    fn apply(&self, layers: &[Vec<u8>]) -> Result<(), Refusal> {
        let root = self.root();
        let mut tree = Tree::new(&root);
        layers.iter().try_for_each(|layer| tree.apply(layer.as_slice()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One entry: its kind, path, and content or link.
#[derive(Clone, Debug)]
enum Item {
    File(String, Vec<u8>),
    Directory(String),
    Symlink(String, String),
    Link(String, String),
    Device(String),
}

fn archive(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o6755);
        let (path, content): (&str, &[u8]) = match item {
            Item::File(path, content) => {
                header.set_entry_type(EntryType::Regular);
                (path, content)
            }
            Item::Directory(path) => {
                header.set_entry_type(EntryType::Directory);
                (path, &[])
            }
            Item::Symlink(path, to) | Item::Link(path, to) => {
                let is_link = matches!(item, Item::Link(..));
                header.set_entry_type(if is_link { EntryType::Link } else { EntryType::Symlink });
                header.set_link_name_literal(to).unwrap();
                (path, &[])
            }
            Item::Device(path) => {
                header.set_entry_type(EntryType::Block);
                (path, &[])
            }
        };
        header.set_size(content.len() as u64);
        // Written by hand: the builder refuses the paths that the tests are about.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn file(path: &str) -> Item {
    Item::File(path.into(), path.into())
}

#[test]
fn what_would_leave_the_root_is_refused_or_stays_inside() {
    let link = |path: &str, to: &str| Item::Symlink(path.into(), to.into());
    let refused: [&[Item]; 8] = [
        &[file("../out")],
        &[file("a/../../out")],
        &[link("up", ".."), file("up/out")],
        &[link("a", "b/../../.."), Item::Directory("b".into()), file("a/out")],
        &[link("loop", "loop"), file("loop/out")],
        &[Item::Link("inside".into(), "../secret".into())],
        &[Item::Link("inside".into(), "/etc/passwd".into())],
        &[file("x/.wh...")],
    ];
    for items in refused {
        let scratch = Scratch::new();
        fs::write(scratch.0.join("secret"), "").unwrap();
        let result = scratch.apply(&[archive(items)]);
        let is_whiteout = matches!(items, [Item::File(path, _)] if path.contains(".wh."));
        assert!(result.is_err() || is_whiteout, "{items:?}");
        let left: Vec<_> =
            fs::read_dir(&scratch.0).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{items:?} left {left:?}");
    }
    // An absolute link means the root's own directory, as it will for the run.
    let scratch = Scratch::new();
    let outside = scratch.0.join("outside").to_string_lossy().into_owned();
    fs::create_dir(&outside).unwrap();
    scratch.apply(&[archive(&[link("evil", &outside), file("evil/written")])]).unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let inside = scratch.root().join(outside.trim_start_matches('/')).join("written");
    assert_eq!(fs::read(inside).unwrap(), b"evil/written");
    // A file over a link replaces the link; what it leads to is left alone.
    let target = scratch.0.join("target");
    fs::write(&target, "old").unwrap();
    let over = [link("over", &target.to_string_lossy()), file("over")];
    scratch.apply(&[archive(&over)]).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert_eq!(fs::read(scratch.root().join("over")).unwrap(), b"over");
}

#[test]
fn set_id_bits_are_dropped_and_devices_left_out() {
    let scratch = Scratch::new();
    let items = [file("program"), Item::Directory("d".into()), Item::Device("d/disk".into())];
    scratch.apply(&[archive(&items)]).unwrap();
    for name in ["program", "d"] {
        let mode = fs::metadata(scratch.root().join(name)).unwrap().mode();
        assert_eq!(mode & 0o6000, 0, "{name}");
        assert_eq!(mode & 0o700, 0o700, "{name}");
    }
    assert!(!scratch.root().join("d/disk").exists());
}

#[test]
fn hard_links_are_one_file_and_follow_the_order_of_entries() {
    let scratch = Scratch::new();
    let items =
        [file("a"), Item::Link("b".into(), "a".into()), Item::Link("d/c".into(), "/b".into())];
    scratch.apply(&[archive(&items), archive(&[Item::File("a".into(), b"new".to_vec())])]).unwrap();
    let read = |name: &str| fs::read(scratch.root().join(name)).unwrap();
    assert_eq!(
        (read("a"), read("b"), read("d/c")),
        (b"new".to_vec(), b"a".to_vec(), b"a".to_vec())
    );
}

/// A tree as paths: a file's content, or `None` for a directory.
type Plain = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// What the specification says, naively: first all whiteouts on what lower layers left, then the entries.
fn oracle(layers: &[Vec<Item>]) -> Plain {
    let mut tree = Plain::new();
    for layer in layers {
        for item in layer {
            let Item::File(path, _) = item else { continue };
            let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
            if name == OPAQUE {
                tree.retain(|at, _| at == Path::new(directory) || !at.starts_with(directory));
            } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                tree.retain(|at, _| !at.starts_with(Path::new(directory).join(hidden)));
            }
        }
        for item in layer {
            let (path, content) = match item {
                Item::File(path, content) => (Path::new(path), Some(content.clone())),
                Item::Directory(path) => (Path::new(path), None),
                _ => continue,
            };
            if path.file_name().unwrap().to_string_lossy().starts_with(WHITEOUT) {
                continue;
            }
            for parent in path.ancestors().skip(1).filter(|it| *it != Path::new("")) {
                tree.entry(parent.to_owned()).or_insert(None);
            }
            if content.is_some() {
                tree.retain(|at, _| !at.starts_with(path));
            }
            tree.insert(path.to_owned(), content);
        }
    }
    tree
}

fn read_back(root: &Path, below: &Path, tree: &mut Plain) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            tree.insert(path.clone(), None);
            read_back(root, &path, tree);
        } else {
            tree.insert(path.clone(), Some(fs::read(root.join(&path)).unwrap()));
        }
    }
}

/// Entries over few names, so that layers meet. Directories are d and e, files a and b: no path is both in
/// one layer, which would be no layer that anybody makes.
fn layer() -> impl Strategy<Value = Vec<Item>> {
    let directory = || prop::sample::select(vec!["", "d/", "e/", "d/d/", "d/e/", "e/d/"]);
    let item = prop_oneof![
        4 => (directory(), prop::sample::select(vec!["a", "b"]), any::<u8>())
            .prop_map(|(at, name, byte)| Item::File(format!("{at}{name}"), vec![byte])),
        2 => (directory(), prop::sample::select(vec!["d", "e"]))
            .prop_map(|(at, name)| Item::Directory(format!("{at}{name}"))),
        2 => (directory(), prop::sample::select(vec!["a", "b", "d", "e"]))
            .prop_map(|(at, name)| Item::File(format!("{at}{WHITEOUT}{name}"), Vec::new())),
        1 => directory().prop_map(|at| Item::File(format!("{at}{OPAQUE}"), Vec::new())),
    ];
    prop::collection::vec(item, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whiteouts_are_applied_as_the_specification_says(
        layers in prop::collection::vec(layer(), 1..5),
    ) {
        let scratch = Scratch::new();
        let archives: Vec<_> = layers.iter().map(|layer| archive(layer)).collect();
        scratch.apply(&archives).unwrap();
        let mut found = Plain::new();
        read_back(&scratch.root(), Path::new(""), &mut found);
        let mut expected = oracle(&layers);
        // A directory that is only there because something below it was is no promise of either.
        for tree in [&mut found, &mut expected] {
            let files: Vec<PathBuf> =
                tree.iter().filter(|(_, it)| it.is_some()).map(|(at, _)| at.clone()).collect();
            tree.retain(|at, it| it.is_some() || files.iter().any(|file| file.starts_with(at)));
        }
        prop_assert_eq!(found, expected);
    }
}
