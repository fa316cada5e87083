//! Zygotes: interpreters from which runs are copied instead of started anew.
//!
//! # Design
//!
//! A zygote is a child of the spawner: the interpreter of the slot's root, started by exec with
//! `zygote.py`, with the spawner's capabilities and filter. It is two processes that share their memory: the
//! first waits for the end of the second, as the spawner's guard does, and stays outside of the slot's
//! cgroups; the second lives in them on v1, so that runs are born there. What the zygote holds was charged
//! to whoever holds the sandbox, before any run; a run is charged for what it changes.
//!
//! For a run the spawner hands over the standard streams, the run's file system, and a pipe with the order.
//! The second process starts init in fresh namespaces (see [`crate::sys::zygote`]) and is suspended until
//! the run is over. The orders are read by the run itself: a zygote's memory, which the next run has a copy
//! of, never holds anything of the run before.
//!
//! A zygote cannot be given another hash seed, as everything it holds lies where the old one put it. So it
//! serves a bounded number of runs, and its successor is started while it still serves.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use super::order::Order;
use super::ran::Ran;
use crate::error::Step;
use crate::job::WORK_DIRECTORY;
use crate::protocol::{DONE, FAILED, READY, Stage};
use crate::sys::clone::{Placement, Stack, suspended_until_done};
use crate::sys::descriptor::Poll;
use crate::sys::exec::Strings;
use crate::sys::zygote::{
    self as code, CALL_FAILED, CODE_AT, Call, ERRNO, FORK, ORDERS_AT, ORDERS_SIZE, Orders, PAGE_AT,
    STACK_AT,
};
use crate::sys::{Errno, credentials, descriptor, exec, process, socket};
use crate::wire::Reader;
use crate::{Error, Result};

/// What the interpreter is started with as its command: see `zygote.py`.
const STARTER: &str = "\
import os
exec(os.read(0, 65536))
try:
    exec(compile(*source()), scope)
except BaseException as error:
    endings.append(error)
leave()
";

const TEXT: &str = include_str!("zygote.py");

/// How long a zygote may take to import what it is to hold.
const SETUP_TIME: Duration = Duration::from_secs(60);

/// What is made for every run: an ipc namespace too, as the zygote cannot be moved out of one that was used.
/// A cgroup namespace comes with it, as the zygote is moved into the slot's group only after it was started.
const FRESH: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;

/// How zygotes are made: the content of a [`crate::protocol::WARM`] message.
pub(super) struct Recipe {
    interpreter: Vec<u8>,
    options: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    /// Modules, and how many of them, from the first on, must be there.
    modules: Vec<String>,
    required: u32,
    /// The program's file: the word after the options.
    file: String,
    stack_bytes: u64,
}

impl Recipe {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let own = |text: &CStr| text.to_bytes_with_nul().to_vec();
        let interpreter = own(reader.string()?);
        let options: Vec<Vec<u8>> = reader.strings()?.into_iter().map(own).collect();
        let environment = reader.strings()?.into_iter().map(own).collect();
        let modules = reader.strings()?;
        let modules = modules.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let file = reader.string()?.to_str().ok()?.to_owned();
        let (required, stack_bytes) = (reader.word()?, reader.long()?);
        Some(Self { interpreter, options, environment, modules, required, file, stack_bytes })
    }
}

/// A zygote, being made or in service.
pub(super) struct Zygote {
    socket: OwnedFd,
    /// What it writes while it is made.
    said: OwnedFd,
    /// Its first process, our child.
    pid: i32,
    /// How many words a run's command has before its own arguments.
    words: usize,
}

/// What the process that becomes the interpreter needs.
struct Launch<'a> {
    interpreter: &'a CStr,
    arguments: Strings<'a>,
    environment: Strings<'a>,
    /// Stdin, stdout, stderr.
    standard: [i32; 3],
    stack_bytes: u64,
    error: AtomicI32,
}

impl Zygote {
    /// Starts one. It makes itself ready while the spawner goes on.
    pub(super) fn start(
        recipe: &Recipe,
        stack: &mut Stack,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Self> {
        let (ours, theirs) = socket::pair().step(|| "make the zygote's sockets".into())?;
        let (said, out) = descriptor::pipe().step(|| "make the zygote's pipe".into())?;
        descriptor::set_nonblocking(said.as_fd()).step(|| "set up a pipe".into())?;
        let text = |bytes: &'_ [u8]| CStr::from_bytes_with_nul(bytes).map(CStr::to_owned);
        let all = |words: &[Vec<u8>]| words.iter().map(|word| text(word)).collect();
        let read = || -> std::result::Result<_, std::ffi::FromBytesWithNulError> {
            let options: std::result::Result<Vec<_>, _> = all(&recipe.options);
            let environment: std::result::Result<Vec<_>, _> = all(&recipe.environment);
            Ok((text(&recipe.interpreter)?, options?, environment?))
        };
        let Ok((interpreter, options, environment)) = read() else {
            return Err(Error::SlotBroken("a word for the zygote has a NUL in it".into()));
        };
        let starter = std::ffi::CString::new(STARTER).unwrap_or_default();
        let mut arguments = vec![interpreter.as_c_str()];
        arguments.extend(options.iter().map(|option| option.as_c_str()));
        arguments.extend([c"-c", &starter]);
        let environment: Vec<&CStr> = environment.iter().map(|word| word.as_c_str()).collect();
        let mut launch = Launch {
            interpreter: &interpreter,
            arguments: Strings::new(&arguments),
            environment: Strings::new(&environment),
            standard: [theirs.as_raw_fd(), out.as_raw_fd(), out.as_raw_fd()],
            stack_bytes: recipe.stack_bytes,
            error: AtomicI32::new(0),
        };
        let pid = suspended_until_done(Placement::default(), stack, become_zygote, &mut launch)
            .step(|| "start a zygote".into())?;
        let error = launch.error.load(Ordering::SeqCst);
        if error != 0 {
            let _ = process::wait(pid);
            let program = interpreter.to_string_lossy().into_owned();
            return Err(Errno(error)).step(|| format!("start {program} as a zygote"));
        }
        let zygote = Self { socket: ours, said, pid, words: recipe.options.len() + 2 };
        let image = descriptor::file_in_memory(&code::image(FRESH, cgroup.is_some()))
            .step(|| "make the zygote's code".into())?;
        let numbers = [
            CODE_AT,
            PAGE_AT,
            STACK_AT,
            ORDERS_AT,
            ORDERS_AT + ORDERS_SIZE,
            code::split_offset(),
            FORK,
            ERRNO,
            u64::from(recipe.required),
        ];
        let mut settings: Vec<String> = numbers.iter().map(u64::to_string).collect();
        settings.extend([WORK_DIRECTORY.to_owned(), recipe.file.clone()]);
        settings.extend(recipe.modules.iter().cloned());
        let settings = settings.join("\0");
        zygote.send(TEXT.as_bytes(), &[])?;
        match cgroup {
            Some(cgroup) => zygote.send(settings.as_bytes(), &[image.as_fd(), cgroup])?,
            None => zygote.send(settings.as_bytes(), &[image.as_fd()])?,
        }
        Ok(zygote)
    }

    fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        socket::send(self.socket.as_fd(), [message, &[], &[]], descriptors)
            .step(|| "send to the zygote".into())
    }

    /// Waits until it can serve: the numbers of its two processes.
    pub(super) fn expect_ready(&self) -> Result<[u32; 2]> {
        let mut wait = [Poll::readable(Some(self.socket.as_fd()))];
        let answered = descriptor::poll(&mut wait, Some(SETUP_TIME));
        if answered.step(|| "wait for the zygote".into())? == 0 {
            let message = format!("the zygote was not ready in {SETUP_TIME:?}");
            return Err(Error::SlotBroken(message));
        }
        let mut buffer = [0; 4096];
        let (length, _) = socket::receive(self.socket.as_fd(), &mut buffer).unwrap_or_default();
        let message = buffer.get(..length).unwrap_or_default();
        let mut reader = Reader::new(message);
        let words = match reader.byte() {
            Some(READY) => reader.word().zip(reader.word()).map(|(first, second)| [first, second]),
            Some(FAILED) => return Err(failure(reader.rest())),
            _ => None,
        };
        words.ok_or_else(|| {
            let length = descriptor::read(self.said.as_fd(), &mut buffer).unwrap_or(0);
            let said = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            Error::SlotBroken(format!("the zygote died when it was made: {}", said.trim()))
        })
    }

    /// Runs what `order` says and waits for its end.
    pub(super) fn run(
        &self,
        order: &Order<'_>,
        files: OwnedFd,
        standard: [OwnedFd; 3],
    ) -> Result<Ran> {
        let (orders, write) = descriptor::pipe().step(|| "make a pipe".into())?;
        let text = self
            .orders(order)
            .ok_or_else(|| Error::SlotBroken("a run's orders are too long for a zygote".into()))?;
        // It fits: a pipe takes as much as orders may be long.
        descriptor::write_all(write.as_fd(), &text).step(|| "write the zygote's orders".into())?;
        drop(write);
        let [stdin, stdout, stderr] = &standard;
        let all = [stdin, stdout, stderr, &files, &orders].map(AsFd::as_fd);
        self.send(b"run", &all)?;
        drop((orders, files, standard));
        let mut failed = None;
        loop {
            let mut buffer = [0; 1024];
            let (length, _) = socket::receive(self.socket.as_fd(), &mut buffer)
                .step(|| "receive from the zygote".into())?;
            let mut reader = Reader::new(buffer.get(..length).unwrap_or_default());
            let cut = || Error::SlotBroken("an answer of the zygote is cut".into());
            match reader.byte() {
                Some(DONE) => {
                    let ran = Ran::read(&mut reader).ok_or_else(cut)?;
                    return Ok(
                        failed.map_or(ran, |failed| Ran { overhead: ran.overhead, ..failed })
                    );
                }
                Some(CALL_FAILED) => {
                    let (error, stage) = reader.word().zip(reader.word()).ok_or_else(cut)?;
                    let stage = u8::try_from(stage).ok().and_then(Stage::from_byte);
                    let errno = Errno(error.cast_signed());
                    failed = Some(Ran::failed(stage.ok_or_else(cut)?, errno));
                }
                _ => return Err(Error::SlotBroken("the zygote died".into())),
            }
        }
    }

    /// What a run does before it is the program, as `child::become_program` has it, and its arguments.
    fn orders(&self, order: &Order<'_>) -> Option<Vec<u8>> {
        let mut orders = Orders::new(order.limits.len() + 9);
        let call = |orders: &mut Orders, stage, number, arguments, most| {
            orders.call(&Call { stage, number, arguments, most });
        };
        for &(resource, soft, hard) in &order.limits {
            let limit = orders.put(&[soft.to_le_bytes(), hard.to_le_bytes()].concat());
            let arguments = [0, u64::from(resource), limit, 0];
            call(&mut orders, Stage::Limits, libc::SYS_prlimit64, arguments, 0);
        }
        let directory = orders.put(order.directory.to_bytes_with_nul());
        let no_signals = orders.put(&[0; 8]);
        call(&mut orders, Stage::Descriptors, libc::SYS_setpgid, [0; 4], 0);
        for (from, to) in (code::STANDARD.map(i32::cast_unsigned)).into_iter().zip(0..) {
            let arguments = [u64::from(from), to, 0, 0];
            call(&mut orders, Stage::Descriptors, libc::SYS_dup3, arguments, to);
        }
        let user = u64::from(order.user);
        call(&mut orders, Stage::User, libc::SYS_setresuid, [user, user, user, 0], 0);
        // The change of user has taken it: a program started by exec has it anew.
        let dumpable = [libc::PR_SET_DUMPABLE as u64, 1, 0, 0];
        call(&mut orders, Stage::User, libc::SYS_prctl, dumpable, 0);
        call(&mut orders, Stage::Directory, libc::SYS_chdir, [directory, 0, 0, 0], 0);
        let mask = [libc::SIG_SETMASK as u64, no_signals, 0, 8];
        call(&mut orders, Stage::Directory, libc::SYS_rt_sigprocmask, mask, 0);
        let all = [3, u64::from(u32::MAX), 0, 0];
        call(&mut orders, Stage::Descriptors, libc::SYS_close_range, all, 0);
        let own = order.words.get(self.words..).unwrap_or_default();
        let text: Vec<u8> = own.iter().flat_map(|word| word.to_bytes_with_nul()).copied().collect();
        let at = orders.put(&text);
        orders.finish([text.len() as u64, at])
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // The second process ends when its socket does, or, if it is still being made, with the first; the
        // first ends with the second, and reaps it.
        let (nobody, _) = match socket::pair() {
            Ok(pair) => pair,
            Err(_) => return,
        };
        self.socket = nobody;
        let pidfd = process::open_pidfd(self.pid);
        let ended = pidfd.as_ref().is_ok_and(|pidfd| {
            let mut wait = [Poll::readable(Some(pidfd.as_fd()))];
            descriptor::poll(&mut wait, Some(Duration::from_millis(500))) == Ok(1)
        });
        if let (false, Ok(pidfd)) = (ended, pidfd) {
            let _ = process::send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        let _ = process::wait(self.pid);
    }
}

fn failure(said: &[u8]) -> Error {
    Error::SlotBroken(String::from_utf8_lossy(said).into_owned())
}

/// The zygote's process until it is the interpreter, in the memory of the suspended spawner.
fn become_zygote(launch: &mut Launch<'_>) -> ! {
    let errno = try_become_zygote(launch).err().unwrap_or(Errno(libc::EIO));
    launch.error.store(errno.0, Ordering::SeqCst);
    process::exit(127);
}

fn try_become_zygote(launch: &Launch<'_>) -> std::result::Result<(), Errno> {
    process::die_with_parent()?;
    // The room for a stack is laid out by exec, and it is the default of threads.
    credentials::limit_resource(libc::RLIMIT_STACK, launch.stack_bytes, launch.stack_bytes)?;
    for (from, to) in launch.standard.into_iter().zip(0..) {
        descriptor::place_standard(from, to)?;
    }
    descriptor::close_on_exec_from(3)?;
    Err(exec::execute(launch.interpreter, &launch.arguments, &launch.environment))
}
