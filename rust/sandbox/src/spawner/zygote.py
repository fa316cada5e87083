"""A zygote: an interpreter that has imported what programs use, and of which every run is a copy.

The spawner starts it with `STARTER` (spawner/zygote.rs) as its command and a socket to itself as
standard input, and sends this text as the first message, the settings as the second. `source`
returns once for every run, in the run's own process; the zygote never leaves it. One frame, that of
the starter, lies below the program's own.

What a program can tell from a start of its own: that frame, more modules in `sys.modules`, an
interpreter that was started with `-c`, and that what it leaves in a module of the zygote's is not
finalised (`__del__`) at its end.
"""
# It stands in for the interpreter, which catches everything, and knows no pathlib.
# ruff: noqa: BLE001, PTH118

import _signal
import _socket
import atexit
import ctypes
import gc
import os
import struct
import sys
from importlib.machinery import SourceFileLoader
from io import FileIO
from itertools import islice
from time import process_time_ns
from types import SimpleNamespace
from weakref import ref

DONE, FAILED, READY = 4, 2, 1
AT_CLONE = 4  # Stage::Clone
SOCKET, OWN_PIDFD, CGROUP, FILES, IMAGE = 10, 11, 12, 13, 18
OF_A_RUN = (14, 15, 16, FILES, 17)  # standard streams, files, orders
INTERRUPTED = -1

libc = ctypes.CDLL(None, use_errno=True)
write_out = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(("fflush", libc))
scope = {}
endings = []
hooks = []
register_at_fork = os.register_at_fork


def collect_hook(*, before=None, after_in_child=None, after_in_parent=None):
    """`os.register_at_fork` while modules are imported: what a run calls too is remembered."""
    given = {"before": before, "after_in_child": after_in_child, "after_in_parent": after_in_parent}
    register_at_fork(**{name: hook for name, hook in given.items() if hook is not None})
    if after_in_child is not None:
        hooks.append(after_in_child)


os.register_at_fork = collect_hook
import threading  # noqa: E402  its hook is to be known

hooks.clear()  # see `run_hooks`
shutdown, get_native_id = threading._shutdown, threading.get_native_id
main_thread = threading.main_thread()


def source():
    """Be a zygote; in each run, what `compile` takes to make the run's program."""
    global known, socket
    try:
        os.dup2(0, SOCKET, inheritable=False)
        socket = _socket.socket(fileno=SOCKET)
        settings = receive_settings()
        code, page, stack, orders, end, split, fork, errno, strict = map(int, settings[:9])
        start, split = prepare([code, page, stack, orders, end], split, fork, errno)
        directory, file = settings[9:11]
        load(settings[11:], strict)
        become_two(split)
        path = set_scene(directory, file)
        known = len(sys.modules)
    except BaseException as error:
        os.write(SOCKET, bytes([FAILED]) + str(error).encode(errors="replace"))
        os._exit(1)
    serve(start, page)
    become_program(orders)
    with FileIO(path) as program:
        return program.read(), path, "exec", 0, True


def receive_settings():
    """The settings, NUL between them; descriptors of theirs are put where they belong."""
    message, control, _, _ = socket.recvmsg(1 << 16, 64)
    received = struct.unpack(f"{len(control[0][2]) // 4}i", control[0][2])
    for number, descriptor in enumerate(received):
        os.dup2(descriptor, (IMAGE, CGROUP)[number], inheritable=False)
        os.close(descriptor)
    nothing = os.open("/dev/null", os.O_RDWR)
    for place in (0, *OF_A_RUN):
        os.dup2(nothing, place, inheritable=place == 0)
    os.close(nothing)
    return message.decode().split("\0")


def prepare(places, split, fork, errno):
    """Map the code, its page, init's stack and room for orders; how to start a run and split us."""
    code, page, stack, orders, end = places
    address = ctypes.c_void_p
    libc.mmap.restype = address
    libc.mmap.argtypes = [address, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.madvise.argtypes = [address, ctypes.c_size_t, ctypes.c_int]
    read, write, execute = 1, 2, 4
    exactly_here, of_no_file = 0x02 | 0x100000, 0x20  # MAP_PRIVATE | MAP_FIXED_NOREPLACE
    do_not_fork = 10
    mapped = [
        libc.mmap(code, page - code, read | execute, exactly_here, IMAGE, 0),
        libc.mmap(page, stack - page, read | write, exactly_here, IMAGE, page - code),
        libc.mmap(stack, orders - stack, read | write, exactly_here | of_no_file, -1, 0),
        libc.mmap(orders, end - orders, read | write, exactly_here | of_no_file, -1, 0),
    ]
    if mapped != places[:4] or libc.madvise(page, stack - page, do_not_fork):
        raise OSError("its memory cannot be mapped")
    os.close(IMAGE)
    for place, function in ((fork, libc.fork), (errno, libc.__errno_location)):
        value = ctypes.cast(function, address).value
        ctypes.c_uint64.from_address(page + place).value = value
    start = ctypes.PYFUNCTYPE(ctypes.c_long, address)(code)
    return start, ctypes.PYFUNCTYPE(ctypes.c_long)(code + split)


def load(names, strict):
    """Import modules; the first `strict` of them must be there."""
    sys.path[:] = [path for path in sys.path if path]  # that of the program comes later
    for number, name in enumerate(names):
        try:
            __import__(name)
        except Exception as error:
            if number < strict:
                raise ImportError(f"{name}\0{type(error).__name__}: {error}") from error
    os.register_at_fork = register_at_fork
    generator = getattr(sys.modules.get("random"), "_inst", None)
    if generator is not None and generator.seed in hooks:
        # The same less a call in Python.
        hooks[hooks.index(generator.seed)] = super(type(generator), generator).seed
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        hooks.append(numpy_random.seed)
    keep_mappings()
    gc.collect()
    gc.freeze()
    gc.disable()


def keep_mappings():
    """Have forks copy the page tables of code and constants too, not find each page again.

    The kernel does so for a mapping of which one page is this process's own: so one byte of each is
    written anew.
    """

    class Segment(ctypes.Structure):
        _fields_ = [("kind", ctypes.c_uint32), ("flags", ctypes.c_uint32)] + [
            (name, ctypes.c_uint64) for name in ("offset", "at", "_", "stored", "size", "align")
        ]

    class Loaded(ctypes.Structure):
        _fields_ = [
            ("base", ctypes.c_uint64),
            ("name", ctypes.c_char_p),
            ("segments", ctypes.POINTER(Segment)),
            ("count", ctypes.c_uint16),
        ]

    page, found = 4096, []
    load, writable, executable = 1, 2, 1
    protect = libc.mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Loaded), ctypes.c_size_t, ctypes.c_void_p)
    def note(loaded, _size, _nothing):
        of = loaded.contents
        for segment in of.segments[: of.count]:
            if segment.kind == load and not segment.flags & writable and b"vdso" not in of.name:
                start = (of.base + segment.at) // page * page
                found.append((start, of.base + segment.at + segment.size - start, segment.flags))
        return 0

    libc.dl_iterate_phdr(note, None)
    for start, size, flags in found:
        now = 1 | (4 if flags & executable else 0)  # PROT_READ, PROT_EXEC
        if protect(start, size, now | 2) == 0:  # PROT_WRITE
            byte = ctypes.c_ubyte.from_address(start)
            byte.value = byte.value
            protect(start, size, now)


def become_two(split):
    """Go on in a child that shares this memory; who was here first waits for its end."""
    first = os.getpid()
    if split() < 0:
        raise OSError("it cannot be split")
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: SIGKILL
    if os.getppid() != first:
        os._exit(1)
    # Capabilities got here by being inheritable. Runs lose them with their user, but not that.
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        sets[2] = sets[5] = 0
    if libc.capset(header, sets):
        raise OSError("its capabilities cannot be set")
    descriptor = os.pidfd_open(os.getpid())
    os.dup2(descriptor, OWN_PIDFD, inheritable=False)
    os.close(descriptor)


def serve(start, page):
    """Start runs as long as they are asked for. Returns in a run."""
    outcome = (ctypes.c_uint32 * 2).from_address(page)
    socket.send(struct.pack("<BII", READY, os.getppid(), os.getpid()))
    used = process_time_ns()
    while True:
        message, control, _, _ = socket.recvmsg(16, 64)
        if not message:
            os._exit(0)
        received = struct.unpack("5i", control[0][2][:20])
        for number in range(5):
            os.dup2(received[number], OF_A_RUN[number], False)
            os.close(received[number])
        init = start(page)
        if init == 0:
            return
        for place in OF_A_RUN:
            os.dup2(0, place, False)
        if init > 0:
            usage = os.wait4(init, 0)[2]
            (stage, status), time = outcome, usage.ru_utime + usage.ru_stime
        else:
            stage, status, time = AT_CLONE, -init, 0.0
        now = process_time_ns()
        socket.send(struct.pack("<BBIQQ", DONE, stage, status, int(time * 1e9), now - used))
        used = now


def become_program(orders):
    """Be this run's alone. What the kernel knows of it, its orders' calls have set already."""
    length = ctypes.c_uint64.from_address(orders + 8).value
    if length:
        text = ctypes.string_at(ctypes.c_uint64.from_address(orders + 16).value, length)
        words = os.fsdecode(text).split("\0")[:-1]
        sys.argv += words
        sys.orig_argv += words
    run_hooks()
    gc.enable()


def run_hooks():
    """What modules do in a forked process: `random` draws a seed.

    There was one thread, which held no lock, and it is the same one here by its address: so what
    the interpreter and `threading` hold is as it should be, but for the kernel's number.
    """
    main_thread._native_id = get_native_id()
    for hook in hooks:
        hook()


def set_scene(directory, file):
    """Make what `python3 OPTIONS FILE` finds, `sys` and `__main__`; the path of FILE."""
    global scope
    path = os.path.join(directory, file)
    sys.argv, sys.orig_argv = [file], [*sys.orig_argv[:-2], file]
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path.insert(0, directory)
    main = type(sys)("__main__")
    scope = vars(main)
    scope.update(__builtins__=__builtins__, __annotations__={}, __file__=path, __cached__=None)
    scope["__loader__"] = SourceFileLoader("__main__", path)
    sys.modules["__main__"] = main
    return path


def failed(error):
    """Report what ended the program, as the interpreter does: the exit code."""
    trace = error.__traceback__.tb_next  # less the starter's frame
    if isinstance(error, SystemExit):
        return exit_code(error.code)
    error = error.with_traceback(trace)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        sys.excepthook(type(error), error, trace)
    except SystemExit as end:
        return exit_code(end.code)
    except BaseException as second:
        sys.stderr.write("Error in sys.excepthook:\n")
        second = second.with_traceback(second.__traceback__.tb_next)
        sys.__excepthook__(type(second), second, second.__traceback__)
        sys.stderr.write("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, trace)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def exit_code(code):
    """What `SystemExit(code)` ends a process with."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def leave():
    """End the process as the interpreter does, less the clearing of what the zygote made."""
    global scope
    status = failed(endings.pop()) if endings else 0
    idle = len(threading._active) == 1 and not threading._threading_atexits
    if not idle or threading._shutdown is not shutdown:
        try:
            threading._shutdown()
        except BaseException as error:
            ignore(error, threading)
    atexit._run_exitfuncs()
    well = flush()
    scope = None
    sys.last_type = sys.last_value = sys.last_traceback = sys.last_exc = None
    clear_modules()
    well = well and flush()
    write_out(None)
    if status == INTERRUPTED:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        os.kill(os.getpid(), _signal.SIGINT)
    os._exit(status if well else 120)


def clear_modules():
    """Let go of the modules that the run made or loaded, so that what they hold is finalised."""
    own = islice(reversed(sys.modules), max(len(sys.modules) - known, 0))
    cleared = [sys.modules.pop(name, None) for name in ["__main__", *own]]
    held = [ref(module) for module in cleared if isinstance(module, type(sys))]
    del cleared
    gc.collect()
    for module in held:
        if module() is None:
            continue
        # Something of the zygote's holds it, so its names are cleared, the private ones first.
        space = vars(module())
        for name in [name for name in space if name[:1] == "_" and name[1:2] != "_"]:
            space[name] = None
        for name in [name for name in space if name != "__builtins__"]:
            space[name] = None
        gc.collect()


def flush():
    """Write out what is buffered; whether that worked."""
    files = [sys.stdout, sys.stderr]
    if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        files += [sys.__stdout__, sys.__stderr__]
    well = True
    for place, file in enumerate(files):
        try:
            if file is not None and not file.closed:
                file.flush()
        except BaseException as error:
            well = False
            if place == 0:
                ignore(error, file)
    return well


def ignore(error, thing):
    """Report an error that nobody can catch, as the interpreter does."""
    import traceback

    trace = error.__traceback__.tb_next
    given = SimpleNamespace(
        exc_type=type(error), exc_value=error, exc_traceback=trace, err_msg=None, object=thing
    )
    if sys.unraisablehook is not sys.__unraisablehook__:
        sys.unraisablehook(given)
        return
    lines = traceback.format_exception(type(error), error, trace)
    sys.stderr.write(f"Exception ignored in: {thing!r}\n" + "".join(lines))
