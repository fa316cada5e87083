//! A work directory on its way from the spawner.

use std::sync::Arc;

use crate::protocol::{Entry, EntryKind, KEPT, TOO_DEEP, TOO_LARGE};
use crate::tree::{Kind, Node, Tree};
use crate::wire::Reader;

/// What has come of it.
#[derive(Default)]
pub(super) struct Work {
    tree: Tree,
    /// The file whose content is coming, with its path.
    open: Option<(Vec<u8>, Node, Vec<u8>)>,
}

impl Work {
    /// Adds an entry; `None` if the message is cut.
    pub(super) fn add(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        self.settle();
        let Entry { kind, mode, modified, path, content } = Entry::read(reader)?;
        let path = path.to_bytes();
        let node = |kind| Node { kind, mode, modified };
        match kind {
            EntryKind::Directory => self.tree.add(path, node(Kind::Directory)),
            EntryKind::Link => self.tree.add(path, node(Kind::Link(content.to_vec()))),
            EntryKind::File => {
                let node = node(Kind::File(Arc::default()));
                self.open = Some((path.to_vec(), node, content.to_vec()));
            }
        }
        Some(())
    }

    /// Adds to the file that came last; `None` if none did.
    pub(super) fn add_more(&mut self, content: &[u8]) -> Option<()> {
        self.open.as_mut()?.2.extend_from_slice(content);
        Some(())
    }

    /// The whole, or why it is not kept.
    pub(super) fn end(mut self, reader: &mut Reader<'_>) -> Result<Tree, &'static str> {
        self.settle();
        match reader.byte() {
            Some(KEPT) => Ok(self.tree),
            Some(TOO_LARGE) => Err("its files are longer than disk_bytes together"),
            Some(TOO_DEEP) => {
                Err("its directories are too deep, or a path is longer than 1024 bytes")
            }
            _ => Err("it cannot be read"),
        }
    }

    fn settle(&mut self) {
        if let Some((path, mut node, content)) = self.open.take() {
            node.kind = Kind::File(Arc::new(content));
            self.tree.add(&path, node);
        }
    }
}
