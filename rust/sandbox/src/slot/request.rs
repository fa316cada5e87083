//! A job on its way to the spawner.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use crate::job::WORK_DIRECTORY;
use crate::protocol::{
    Disk, Entry, EntryKind, MAX_MESSAGE, MAX_PIECE, RUN, STAGE, WORK, WORK_MORE,
};
use crate::spawner::user_namespace;
use crate::sys::socket;
use crate::wire::Writer;
use crate::{Error, Job, Kind, Limits, Result, Tree};

/// Room that the fixed parts of a message take, generously.
const HEAD: usize = 4 << 10;

/// A job that was checked: it fits the messages, and none of its paths leaves the work directory.
pub struct Request<'a>(&'a Job);

impl<'a> Request<'a> {
    /// Checks `job`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] names what is wrong with it.
    pub(crate) fn new(job: &'a Job) -> Result<Self> {
        job.limits.check()?;
        let words = [("arguments", &job.arguments), ("environment", &job.environment)];
        let mut length = job.program.len();
        for (field, words) in words {
            for word in words {
                if word.contains('\0') {
                    return Err(Error::invalid(field, format!("{word:?}"), "no NUL in it"));
                }
                length += word.len() + 5;
            }
        }
        if job.program.is_empty() || job.program.contains('\0') {
            return Err(Error::invalid("program", format!("{:?}", job.program), "a path"));
        }
        for path in job.files.keys() {
            check_path("files", path)?;
        }
        for path in &job.fetch {
            check_path("fetch", path)?;
            length += path.len() + 5;
        }
        if length > MAX_MESSAGE - MAX_PIECE - HEAD {
            let most = MAX_MESSAGE - MAX_PIECE - HEAD;
            let expected = format!("at most {most} bytes in all, with the names of wanted files");
            return Err(Error::invalid("arguments", format!("{length} bytes"), expected));
        }
        if let Some(tree) = &job.work {
            // What was on such a disk before fits on it again.
            tree.check(&job.limits, 1)?;
        }
        let inodes = job.files.len() as u64 + 4;
        if inodes > job.limits.disk_files {
            let expected = format!("at most disk_files - 4 = {}", job.limits.disk_files - 4);
            return Err(Error::invalid("files", format!("{} files", job.files.len()), expected));
        }
        Ok(Self(job))
    }

    pub(crate) fn job(&self) -> &'a Job {
        self.0
    }

    /// Sends it: what is too long for one message ahead, then the run with its standard streams (stdout,
    /// stderr, and stdin if there is something to read).
    pub(super) fn send(
        &self,
        to: BorrowedFd<'_>,
        user: u32,
        standard: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let job = self.0;
        let disk = Disk { bytes: job.limits.disk_bytes, files: job.limits.disk_files };
        if let Some(tree) = &job.work {
            send_tree(to, tree, disk, user)?;
        }
        let mut room = MAX_PIECE;
        let mut inline = Vec::new();
        for (path, file) in &job.files {
            if let Some(rest) = room.checked_sub(file.content.len() + path.len() + 10) {
                room = rest;
                inline.push((path, file));
                continue;
            }
            for piece in file.content.chunks(MAX_PIECE) {
                let mut writer = Writer::new(STAGE);
                disk.write(&mut writer);
                writer.word(user);
                writer.byte(u8::from(file.executable));
                writer.string(path);
                writer.bytes(piece);
                send(to, &writer, &[])?;
            }
        }
        let mut writer = Writer::new(RUN);
        disk.write(&mut writer);
        writer.word(user);
        let beside = if user == user_namespace::USER { user_namespace::OWN_PROCESSES } else { 0 };
        write_limits(&mut writer, &job.limits, beside);
        writer.string(WORK_DIRECTORY);
        writer.string(&job.program);
        for words in [&job.arguments, &job.environment] {
            writer.count(words.len());
            words.iter().for_each(|word| writer.string(word));
        }
        writer.count(inline.len());
        for (path, file) in inline {
            writer.byte(u8::from(file.executable));
            writer.string(path);
            writer.bytes(&file.content);
        }
        writer.long(job.limits.disk_bytes);
        writer.count(job.fetch.len());
        job.fetch.iter().for_each(|path| writer.string(path));
        writer.byte(u8::from(job.keeps_work));
        send(to, &writer, standard)
    }
}

/// Sends a work directory ahead of its run.
fn send_tree(to: BorrowedFd<'_>, tree: &Tree, disk: Disk, user: u32) -> Result<()> {
    for (path, node) in tree.iter() {
        let path = CString::new(path)
            .map_err(|_| Error::invalid("files", format!("{path:?}"), "no NUL in a path"))?;
        let (kind, content) = match &node.kind {
            Kind::Directory => (EntryKind::Directory, &[][..]),
            Kind::Link(says) => (EntryKind::Link, &**says),
            Kind::File(content) => (EntryKind::File, &***content),
        };
        let (head, rest) = content.split_at(content.len().min(MAX_PIECE));
        let (mode, modified) = (node.mode, node.modified);
        let mut writer = Writer::new(WORK);
        disk.write(&mut writer);
        writer.word(user);
        Entry { kind, mode, modified, path: &path, content: head }.write(&mut writer);
        send(to, &writer, &[])?;
        for piece in rest.chunks(MAX_PIECE) {
            let head = Writer::new(WORK_MORE);
            socket::send(to, [head.as_slice(), piece, &[]], &[]).map_err(super::gone)?;
        }
    }
    Ok(())
}

fn send(to: BorrowedFd<'_>, writer: &Writer, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    socket::send(to, [writer.as_slice(), &[], &[]], descriptors).map_err(super::gone)
}

/// The limits that a process carries itself: second fences behind the slot's watch and the cgroup.
/// `beside` is how many processes the run's user has besides the run's.
fn write_limits(writer: &mut Writer, limits: &Limits, beside: u64) {
    // One second later than the slot's watch would, whose verdict is the better one.
    let seconds = limits.cpu_time.as_secs() + 1 + u64::from(limits.cpu_time.subsec_nanos() > 0);
    let same = [
        (libc::RLIMIT_CPU, seconds),
        (libc::RLIMIT_FSIZE, limits.disk_bytes),
        (libc::RLIMIT_STACK, limits.stack_bytes),
        (libc::RLIMIT_NOFILE, limits.open_files),
        (libc::RLIMIT_NPROC, limits.processes + beside), // of its user, which no other run has
    ];
    writer.count(same.len());
    for (resource, value) in same {
        writer.word(resource);
        writer.long(value);
        writer.long(value);
    }
}

/// Refuses a path that leaves the work directory.
pub(crate) fn check_path(field: &'static str, path: &str) -> Result<()> {
    let wrong = |part: &str| part.is_empty() || part == "." || part == ".." || part.len() > 255;
    if path.len() > 1024 || path.contains('\0') || path.split('/').any(wrong) {
        let expected = "a path relative to the work directory, without `.`, `..` or empty parts";
        return Err(Error::invalid(field, format!("{path:?}"), expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InputFile;

    fn job() -> Job {
        Job { program: "/usr/bin/true".into(), ..Job::default() }
    }

    #[test]
    fn no_path_leaves_the_work_directory() {
        for path in ["/etc/passwd", "../x", "a/../../x", "", "a//b", "a/", ".", "a\0b"] {
            let mut wrong = job();
            wrong.files.insert(path.into(), InputFile::default());
            assert!(Request::new(&wrong).is_err(), "{path:?} as input");
            let wrong = Job { fetch: vec![path.into()], ..job() };
            assert!(Request::new(&wrong).is_err(), "{path:?} as output");
        }
        let right = Job { fetch: vec!["a/b.txt".into()], ..job() };
        assert!(Request::new(&right).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let long = Job { arguments: vec!["x".repeat(MAX_MESSAGE)], ..job() };
        let message = Request::new(&long).err().unwrap().to_string();
        assert!(message.starts_with("arguments = "), "{message}");
        let nul = Job { environment: vec!["A=\0".into()], ..job() };
        let message = Request::new(&nul).err().unwrap().to_string();
        assert!(message.starts_with("environment = "), "{message}");
    }
}
