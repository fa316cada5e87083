//! The spawner: a small process, started by exec, that is a slot's other half.
//!
//! # Design
//!
//! It is linked statically, has one thread, and holds all that can be pooled. For a run it makes or
//! reuses a tmpfs, stages the input files on it, and starts init ([`child`]) in fresh namespaces with
//! `CLONE_VM | CLONE_VFORK`: no page table is copied, and the spawner is suspended until the run is over.
//! So it never has to be scheduled while a run lives: a run that burns its slot's processor quota or
//! memory finds nobody to starve. Time, output and processor use are watched by the slot, from
//! another process and, on cgroup v1, from outside the cgroup that the two live in.
//!
//! Two processes make it up. The one that was started, the guard, does nothing but start the other in the
//! same way, with `CLONE_VM | CLONE_VFORK`, and wait. The kernel never chooses a process that still shares
//! its memory with the parent that waits for it when it kills for want of memory, so the spawner, which
//! lives in its runs' memory cgroup on v1, cannot be killed with them. The guard stays outside, and what
//! the two keep in memory is charged there. All runs inherit the spawner's OOM score, the highest.

mod child;
mod container;
mod container_init;
mod container_world;
mod fetch;
mod files;
mod guard;
mod order;
mod overlay;
mod ran;
mod setup;
mod sockets;
pub(crate) mod user_namespace;
mod work;
mod zygote;
mod zygotes;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::error::Step;
use crate::protocol::{
    CHECK, CONFIGURE, CONFIGURE_CONTAINER, DONE, Disk, Done, Entry, FAILED, MAX_MESSAGE, READY,
    RUN, STAGE, SWITCH, Stage, WARM, WORK, WORK_MORE,
};
use crate::rootfs::Plan;
use crate::sys::clone::{Placement, Stack, suspended_until_done};
use crate::sys::socket::Received;
use crate::sys::{Errno, descriptor, process, socket};
use crate::wire::{Reader, Writer};
use crate::{Error, Result};
use child::{Init, Program, Report};
use container::Container;
pub(crate) use container_init::CAPABILITIES;
pub use container_init::be_init;
pub(crate) use container_world::{BUNDLE, INIT, RUN_TMP, STATE};
use files::RunFiles;
pub use guard::serve;
use guard::stay_with;
use order::Order;
use overlay::Overlay;
use ran::{Ran, nanoseconds};
pub(crate) use setup::GROUP;
use work::Staging;
use zygote::Recipe;
use zygotes::Zygotes;

/// Namespaces that are made for every run. An ipc namespace is made when a run has left something in the
/// one before: making one costs 30 µs, and one in which nothing was made is as good as new.
const FRESH: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS;

const STACK: usize = 64 << 10;

/// The state of a spawner.
struct Spawner<'a> {
    socket: BorrowedFd<'a>,
    /// The process that started it, readable when it is dead.
    guard: BorrowedFd<'a>,
    /// Itself, by which init sees whether it is alive.
    own_pidfd: OwnedFd,
    /// The cgroup (v2) that runs start in.
    cgroup: Option<OwnedFd>,
    /// What runs are started by, if not by this process itself.
    container: Option<Container>,
    zygotes: Zygotes,
    /// The run's root, where it can write to it.
    overlay: Option<Overlay>,
    /// Whether runs have such a root, whoever makes it.
    is_overlaid: bool,
    /// The next run's file system, once there is one.
    files: Option<RunFiles>,
    /// What counts the sockets of the slot's network namespace, once it has one.
    sockets: Option<OwnedFd>,
    /// Whether a run has left what cannot be taken away: it was the last.
    is_worn_out: bool,
    /// Whether a run has left objects in the ipc namespace that could not be replaced.
    stale_ipc: bool,
    /// The work directory of the next run, as far as it has come.
    work: Staging,
    /// Processor time that putting it there took: it is not the run's.
    work_time: Duration,
    /// What went wrong when staging, told when the run is asked for.
    staging_error: Option<Errno>,
    stacks: [Stack; 2],
}

/// Serves a slot's runs until the slot closes `socket` or a run has left what cannot be taken away.
fn serve_runs(socket: BorrowedFd<'_>, guard: BorrowedFd<'_>) -> Result<()> {
    stay_with(guard)?;
    // Runs inherit it: of all that shares a memory limit with them, they go first.
    fs::write("/proc/self/oom_score_adj", "1000").step(|| "raise the OOM score".into())?;
    let own_pid = std::process::id();
    let own_pidfd = process::open_pidfd(own_pid.cast_signed())
        .step(|| "open the spawner's own pidfd".into())?;
    let mut spawner = Spawner {
        socket,
        guard,
        own_pidfd,
        sockets: None,
        is_worn_out: false,
        cgroup: None,
        container: None,
        overlay: None,
        is_overlaid: false,
        zygotes: Zygotes::default(),
        files: None,
        stale_ipc: false,
        work: Staging::default(),
        work_time: Duration::ZERO,
        staging_error: None,
        stacks: [Stack::new(STACK), Stack::new(STACK)],
    };
    let mut hello = Writer::new(READY);
    hello.word(own_pid);
    spawner.send(&hello)?;
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let (length, descriptors) =
            socket::receive(socket, &mut buffer).step(|| "receive from the slot".into())?;
        if length == 0 {
            return Ok(());
        }
        let message = buffer.get(..length).unwrap_or_default();
        spawner
            .answer(message, descriptors)?
            .ok_or_else(|| Error::SlotBroken("a message to the spawner is cut".into()))?;
        if spawner.is_worn_out {
            return Ok(());
        }
    }
}

impl Spawner<'_> {
    /// Does what a message asks; `None` if it makes no sense.
    fn answer(&mut self, message: &[u8], descriptors: Received) -> Result<Option<()>> {
        let mut reader = Reader::new(message);
        match reader.byte() {
            Some(CONFIGURE) => {
                let Some(plan) = Plan::read(&mut reader) else { return Ok(None) };
                let Some(has_zygotes) = reader.byte() else { return Ok(None) };
                let [cgroup, ..] = descriptors;
                self.cgroup = cgroup;
                let made = setup::become_slot(&plan, has_zygotes != 0, self.cgroup.is_some());
                let made = made.and_then(|sockets| {
                    self.sockets = Some(sockets);
                    self.is_overlaid = plan.is_writable;
                    self.overlay = plan.is_writable.then(|| Overlay::new(&plan, "")).transpose()?;
                    Ok(())
                });
                self.tell(made)?;
            }
            Some(CONFIGURE_CONTAINER) => {
                let [cgroup, ..] = descriptors;
                self.cgroup = cgroup;
                let Some(made) = Container::set_up(&mut reader, self.cgroup.is_some()) else {
                    return Ok(None);
                };
                let made = made.map(|(container, sockets)| {
                    self.is_overlaid = container.is_overlaid();
                    self.container = Some(container);
                    self.sockets = Some(sockets);
                });
                self.tell(made)?;
            }
            Some(WARM) => {
                if !reader.rest().is_empty() {
                    let Some(recipe) = Recipe::read(&mut reader) else { return Ok(None) };
                    self.zygotes.make_by(recipe);
                }
                // If that fails, it is tried again when it is wanted, and told then.
                let _ = self.start_zygote();
            }
            Some(SWITCH) => self.switch_zygote()?,
            Some(STAGE) => {
                if self.stage(&mut reader).is_none() {
                    return Ok(None);
                }
            }
            Some(WORK) => {
                if self.stage_work(&mut reader).is_none() {
                    return Ok(None);
                }
            }
            Some(WORK_MORE) => self.stage_more(reader.rest()),
            Some(RUN) => return self.run(&mut reader, descriptors),
            Some(CHECK) => self.send(&Writer::new(READY))?,
            _ => return Ok(None),
        }
        Ok(Some(()))
    }

    /// Tells how setting up went.
    fn tell(&self, result: Result<()>) -> Result<()> {
        // A change of user or group unties a process from its parent.
        match result.and_then(|()| stay_with(self.guard)) {
            Ok(()) => self.send(&Writer::new(READY)),
            Err(error) => self.tell_failure(&error),
        }
    }

    fn tell_failure(&self, error: &Error) -> Result<()> {
        let mut writer = Writer::new(FAILED);
        writer.string(&error.to_string().replace('\0', ": "));
        self.send(&writer)
    }

    /// Starts the zygote that will serve next, unless there is one.
    fn start_zygote(&mut self) -> Result<()> {
        let [stack, _] = &mut self.stacks;
        self.zygotes.start_next(stack, self.cgroup.as_ref().map(AsFd::as_fd))
    }

    /// Has the next zygote serve, and ends the one that did.
    fn switch_zygote(&mut self) -> Result<()> {
        match self.start_zygote().and_then(|()| self.zygotes.switch()) {
            Ok([first, second]) => {
                let mut writer = Writer::new(READY);
                writer.word(first);
                writer.word(second);
                self.send(&writer)
            }
            Err(error) => self.tell_failure(&error),
        }
    }

    fn send(&self, writer: &Writer) -> Result<()> {
        socket::send(self.socket, [writer.as_slice(), &[], &[]], &[])
            .step(|| "answer the slot".into())
    }

    /// The file system that the next run gets.
    fn files_for(&mut self, disk: Disk) -> Result<&mut RunFiles, Errno> {
        self.files = match self.files.take() {
            Some(files) if files.is_for(disk) => Some(files),
            _ => Some(RunFiles::new(disk, self.is_overlaid)?),
        };
        self.files.as_mut().ok_or(Errno(libc::ENOENT))
    }

    fn stage(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let (disk, user) = (Disk::read(reader)?, reader.word()?);
        let executable = reader.byte()? != 0;
        let (path, content) = (reader.string()?, reader.bytes()?);
        if self.staging_error.is_none() {
            let files = self.files_for(disk);
            self.staging_error =
                files.and_then(|files| files.append(path, user, executable, content)).err();
        }
        Some(())
    }

    fn stage_work(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let busy = process::processor_time();
        let (disk, user) = (Disk::read(reader)?, reader.word()?);
        let entry = Entry::read(reader)?;
        if self.staging_error.is_none() {
            let mut work = std::mem::take(&mut self.work);
            let files = self.files_for(disk);
            self.staging_error = files.and_then(|files| work.add(files, user, &entry)).err();
            self.work = work;
        }
        self.work_time += process::processor_time().saturating_sub(busy);
        Some(())
    }

    fn stage_more(&mut self, content: &[u8]) {
        let busy = process::processor_time();
        if self.staging_error.is_none() {
            self.staging_error = self.work.add_more(content).err();
        }
        self.work_time += process::processor_time().saturating_sub(busy);
    }

    fn run(&mut self, reader: &mut Reader<'_>, standard: Received) -> Result<Option<()>> {
        let start = process::monotonic();
        let busy = process::processor_time();
        let Some(disk) = Disk::read(reader) else { return Ok(None) };
        let body = reader.rest();
        let Some(order) = Order::read(reader) else { return Ok(None) };
        let [Some(stdout), Some(stderr), stdin, None, None] = standard else { return Ok(None) };
        let prepared = self.prepare(disk, &order).and_then(|mount| {
            // Opened for every run, so that flags and locks that a run sets on it end with it.
            let empty = || descriptor::open(None, c"/dev/null", libc::O_RDONLY, 0);
            Ok((mount, stdin.map_or_else(empty, Ok)?))
        });
        let ran = match (prepared, self.zygotes.serving()) {
            (Err(errno), _) => Ran::failed(Stage::Files, errno),
            (Ok((mount, stdin)), Some(zygote)) => {
                match zygote.run(&order, mount, [stdin, stdout, stderr]) {
                    Ok(ran) => ran,
                    Err(error) => return self.tell_failure(&error).map(Some),
                }
            }
            (Ok((mount, stdin)), None) => {
                let standard = [&stdin, &stdout, &stderr].map(AsRawFd::as_raw_fd);
                self.launch(&order, body, &mount, standard)
            }
        };
        let Ran { stage, status, .. } = ran;
        let wall = nanoseconds(process::monotonic().saturating_sub(start));
        let mut files = Writer::default();
        fetch::send_wanted(self.socket, self.files.as_ref(), &order, &mut files)?;
        if order.keeps_work {
            let files_ = self.files.as_ref();
            files.byte(work::send_all(self.socket, files_, disk.bytes)?);
        }
        self.clear();
        // A zygote lives where its runs live, and the spawner does not.
        let busy = match self.zygotes.serving() {
            Some(_) => Duration::ZERO,
            None => process::processor_time().saturating_sub(busy) + self.work_time,
        };
        self.work_time = Duration::ZERO;
        let (used, overhead) = (nanoseconds(ran.used), nanoseconds(ran.overhead + busy));
        let mut head = Writer::new(DONE);
        Done { stage, status, wall, used, overhead }.write(&mut head);
        socket::send(self.socket, [head.as_slice(), files.as_slice(), &[]], &[])
            .step(|| "answer the slot".into())?;
        Ok(Some(()))
    }

    /// Stages the files that came with the order. The run's mount of the file system.
    fn prepare(&mut self, disk: Disk, order: &Order<'_>) -> Result<OwnedFd, Errno> {
        if let Some(errno) = self.staging_error.take() {
            self.work = Staging::default();
            return Err(errno);
        }
        if self.stale_ipc {
            return Err(Errno(libc::EBUSY));
        }
        let mut work = std::mem::take(&mut self.work);
        let files = self.files_for(disk)?;
        work.finish(files, order.user)?;
        for &(executable, path, content) in &order.files {
            files.append(path, order.user, executable, content)?;
        }
        files.mount_for_run()
    }

    /// Runs the program and waits for its end. `body` is what `order` was read from.
    fn launch(
        &mut self,
        order: &Order<'_>,
        body: &[u8],
        mount: &OwnedFd,
        standard: [i32; 3],
    ) -> Ran {
        let report = Report::new(Stage::Clone);
        let [stack, program_stack] = &mut self.stacks;
        let cgroup = self.cgroup.as_ref().map(AsFd::as_fd);
        if let Some(container) = &mut self.container {
            let places = (self.own_pidfd.as_fd(), cgroup);
            return container.launch(body, mount, standard, places, stack);
        }
        let mut init = Init {
            spawner: self.own_pidfd.as_fd(),
            files: mount.as_fd(),
            is_in_new_cgroup: cgroup.is_some(),
            overlay: self.overlay.as_ref(),
            stack: program_stack,
            program: Program { order, standard, report: &report },
        };
        let placement = Placement { namespaces: FRESH, cgroup };
        let started = suspended_until_done(placement, stack, child::init, &mut init);
        match started.and_then(process::wait) {
            Ok(ended) => {
                let (stage, status) = report.read();
                Ran { stage, status, used: ended.cpu_time, overhead: Duration::ZERO }
            }
            Err(errno) => Ran::failed(Stage::Clone, errno),
        }
    }

    /// Makes what is kept between runs as good as new.
    fn clear(&mut self) {
        let of_zygotes = 2 * self.zygotes.count();
        self.is_worn_out =
            self.sockets.as_ref().is_some_and(|file| sockets::are_left(file, of_zygotes));
        self.files = self.files.take().and_then(RunFiles::renew);
        if process::has_no_ipc_objects() != Ok(true) {
            // Objects end with the namespace that they are in. If that fails, so does the next run.
            self.stale_ipc = process::unshare(libc::CLONE_NEWIPC).is_err();
        }
    }
}
