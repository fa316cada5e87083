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
mod files;
mod order;
mod overlay;
mod setup;
pub(crate) mod user_namespace;
mod zygote;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::error::Step;
use crate::protocol::{
    ABSENT, CHECK, CONFIGURE, CONFIGURE_CONTAINER, DONE, Disk, Done, FAILED, FETCHED, MAX_MESSAGE,
    MAX_PIECE, NOT_A_FILE, PIECE, READY, RUN, STAGE, SWITCH, Stage, TOO_LONG, WARM,
};
use crate::rootfs::Plan;
use crate::sys::clone::{Placement, Stack, suspended_until_done};
use crate::sys::descriptor::Poll;
use crate::sys::socket::Received;
use crate::sys::{Errno, descriptor, process, socket};
use crate::wire::{Reader, Writer};
use crate::{Error, Result, capability};
use child::{Init, Program, Report};
use container::Container;
pub(crate) use container_init::CAPABILITIES;
pub use container_init::be_init;
pub(crate) use container_world::{BUNDLE, INIT, RUN_TMP, STATE};
use files::RunFiles;
use order::Order;
use overlay::Overlay;
pub(crate) use setup::GROUP;
use zygote::{Recipe, Zygote};

/// Namespaces that are made for every run. An ipc namespace is made when a run has left something in the
/// one before: making one costs 30 µs, and one in which nothing was made is as good as new.
const FRESH: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS;

const STACK: usize = 64 << 10;
const SPAWNER_STACK: usize = 512 << 10;

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
    /// What zygotes are made of, the one that serves, and the one that will.
    recipe: Option<Recipe>,
    zygote: Option<Zygote>,
    next_zygote: Option<Zygote>,
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
    /// What went wrong when staging, told when the run is asked for.
    staging_error: Option<Errno>,
    stacks: [Stack; 2],
}

/// What became of a run.
#[derive(Clone, Copy)]
struct Ran {
    stage: Stage,
    /// The wait status, or the error of the stage.
    status: i32,
    /// Processor time of those of its processes that were waited for.
    used: Duration,
    /// Processor time of what was started for it beside the program.
    overhead: Duration,
}

impl Ran {
    /// A run that came to `stage` and no further.
    fn failed(stage: Stage, errno: Errno) -> Self {
        Self { stage, status: errno.0, used: Duration::ZERO, overhead: Duration::ZERO }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Serves the slot at the other end of `socket` until that is closed. `parent` is the slot's process.
///
/// # Errors
///
/// What could not be set up; the process should then end.
pub fn serve(socket: BorrowedFd<'_>, parent: i32) -> Result<()> {
    process::die_with_parent().step(|| "tie the spawner to its parent".into())?;
    if process::parent() != parent {
        return Err(Error::SlotBroken("the parent died before its spawner was ready".into()));
    }
    descriptor::close_on_exec_from(0).step(|| "mark descriptors".into())?;
    if !capability::is_privileged()
        && let Err(error) = user_namespace::enter()
    {
        let mut writer = Writer::new(FAILED);
        writer.string(&error.to_string().replace('\0', ""));
        let _ = socket::send(socket, [writer.as_slice(), &[], &[]], &[]);
        return Err(error);
    }
    process::reset_signals();
    process::block_signals(true).step(|| "block signals".into())?;
    // No terminal: neither for this process nor for what it starts.
    process::start_session().step(|| "start a session".into())?;
    process::adopt_orphans().step(|| "adopt what a spawner leaves".into())?;
    let mut service = Service {
        socket,
        guard: process::open_pidfd(std::process::id().cast_signed())
            .step(|| "open the guard's pidfd".into())?,
        result: Ok(()),
    };
    let mut stack = Stack::new(SPAWNER_STACK);
    let spawner = suspended_until_done(Placement::default(), &mut stack, be_spawner, &mut service)
        .step(|| "start the spawner".into())?;
    let _ = process::wait(spawner);
    while process::wait(-1).is_ok() {} // what the spawner has left
    service.result
}

/// What the guard hands to the spawner, and what it gets back.
struct Service<'a> {
    socket: BorrowedFd<'a>,
    guard: OwnedFd,
    result: Result<()>,
}

/// The spawner's life, in the memory of the suspended guard, which is its own for as long as it lives.
fn be_spawner(service: &mut Service<'_>) -> ! {
    service.result = serve_runs(service);
    process::exit(i32::from(service.result.is_err()));
}

fn serve_runs(service: &Service<'_>) -> Result<()> {
    stay_with(service.guard.as_fd())?;
    // Runs inherit it: of all that shares a memory limit with them, they go first.
    fs::write("/proc/self/oom_score_adj", "1000").step(|| "raise the OOM score".into())?;
    let own_pid = std::process::id();
    let own_pidfd = process::open_pidfd(own_pid.cast_signed())
        .step(|| "open the spawner's own pidfd".into())?;
    let socket = service.socket;
    let mut spawner = Spawner {
        socket,
        guard: service.guard.as_fd(),
        own_pidfd,
        sockets: None,
        is_worn_out: false,
        cgroup: None,
        container: None,
        overlay: None,
        is_overlaid: false,
        recipe: None,
        zygote: None,
        next_zygote: None,
        files: None,
        stale_ipc: false,
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

/// Ties this process's life to the guard's.
fn stay_with(guard: BorrowedFd<'_>) -> Result<()> {
    process::die_with_parent().step(|| "tie the spawner to its guard".into())?;
    let mut guard = [Poll::readable(Some(guard))];
    if descriptor::poll(&mut guard, Some(Duration::ZERO)) != Ok(0) {
        return Err(Error::SlotBroken("the guard died before its spawner was ready".into()));
    }
    Ok(())
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
                let made = setup::become_slot(&plan, has_zygotes != 0);
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
                let Some(made) = Container::set_up(&mut reader) else { return Ok(None) };
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
                    self.recipe = Some(recipe);
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
        let cgroup = self.cgroup.as_ref().map(AsFd::as_fd);
        if let (None, Some(recipe)) = (&self.next_zygote, &self.recipe) {
            let [stack, _] = &mut self.stacks;
            self.next_zygote = Some(Zygote::start(recipe, stack, cgroup)?);
        }
        Ok(())
    }

    /// Has the next zygote serve, and ends the one that did.
    fn switch_zygote(&mut self) -> Result<()> {
        let started = self.start_zygote();
        let absent = || Error::SlotBroken("nobody said what a zygote is made of".into());
        let next = started.and_then(|()| self.next_zygote.take().ok_or_else(absent));
        match next.and_then(|next| Ok((next.expect_ready()?, next))) {
            Ok(([first, second], next)) => {
                self.zygote = Some(next);
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
        let ran = match (prepared, &self.zygote) {
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
        self.fetch(&order, &mut files)?;
        self.clear();
        // A zygote lives where its runs live, and the spawner does not.
        let busy = match self.zygote {
            Some(_) => Duration::ZERO,
            None => process::processor_time().saturating_sub(busy),
        };
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
            return Err(errno);
        }
        if self.stale_ipc {
            return Err(Errno(libc::EBUSY));
        }
        let files = self.files_for(disk)?;
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
        self.is_worn_out = !self.has_no_sockets();
        self.files = self.files.take().and_then(RunFiles::renew);
        if process::has_no_ipc_objects() != Ok(true) {
            // Objects end with the namespace that they are in. If that fails, so does the next run.
            self.stale_ipc = process::unshare(libc::CLONE_NEWIPC).is_err();
        }
    }

    /// Whether no socket of a run is left in the slot's network namespace: only those of zygotes. Those that were on their way
    /// in a circle of sockets live, with their names and files, until the kernel collects them.
    fn has_no_sockets(&self) -> bool {
        const LOOKS: u32 = 200;
        let Some(file) = &self.sockets else { return true };
        let own = 2 * (self.zygote.iter().len() + self.next_zygote.iter().len());
        let expected = format!("sockets: used {own}\n");
        (0..LOOKS).any(|look| {
            if look > 0 {
                // The kernel looks for circles when a socket is closed, in a thread of its own.
                drop(socket::pair());
                let _ = descriptor::poll(&mut [], Some(Duration::from_micros(100)));
            }
            let mut text = [0; 32];
            descriptor::read_from_start(file.as_fd(), &mut text).is_ok()
                && text.starts_with(expected.as_bytes())
        })
    }

    /// Adds what became of each wanted file to the answer, sending the content ahead of it.
    fn fetch(&self, order: &Order<'_>, answer: &mut Writer) -> Result<()> {
        let mut left = order.most_bytes;
        let mut piece = vec![0; if order.wanted.is_empty() { 0 } else { MAX_PIECE }];
        for (index, name) in (0u32..).zip(&order.wanted) {
            let state = match self.files.as_ref().map(|files| files.open(name)) {
                Some(Ok(file)) => self.send_file(index, &file, &mut piece, &mut left)?,
                Some(Err(Errno(libc::ENOENT))) | None => ABSENT,
                Some(Err(_)) => NOT_A_FILE,
            };
            answer.byte(state);
        }
        Ok(())
    }

    fn send_file(
        &self,
        index: u32,
        file: &OwnedFd,
        piece: &mut [u8],
        left: &mut u64,
    ) -> Result<u8> {
        loop {
            let length = match descriptor::read(file.as_fd(), piece) {
                Ok(0) => return Ok(FETCHED),
                Ok(length) => length,
                Err(_) => return Ok(NOT_A_FILE),
            };
            let Some(rest) = left.checked_sub(length as u64) else { return Ok(TOO_LONG) };
            *left = rest;
            let mut head = Writer::new(PIECE);
            head.word(index);
            let content = piece.get(..length).unwrap_or_default();
            socket::send(self.socket, [head.as_slice(), content, &[]], &[])
                .step(|| "send a file".into())?;
        }
    }
}
