"""Small Python programs that must end in the same way whatever starts them."""

from __future__ import annotations

_TEXT = r"""
### print
print(1)

### nothing


### main
if __name__ == '__main__': print(__name__, __file__, __doc__, __package__, __spec__)

### docstring
'the text'
print(__doc__, __annotations__, sorted(globals()))

### loader
print(type(__loader__).__name__, __loader__.name, __loader__.path, __cached__)

### main module
import sys
print(vars(sys.modules['__main__']) is globals(), __builtins__)

### arguments
import sys
print(sys.argv, sys.orig_argv, sys.flags, sys.executable)

### path
import sys
print(sys.path, sys.prefix)

### identity
import os
print(os.getpid(), os.getppid(), os.getpgid(0), os.getcwd(), os.getgid())

### environment
import os
print(dict(os.environ))

### descriptors
import os
print(sorted(os.listdir('/proc/self/fd')))

### input
print(sum(map(int, input().split())), input(), repr(__import__('sys').stdin.read()))

### input buffer
import sys
print(sys.stdin.buffer.read())

### streams
import sys
for s in sys.stdin, sys.stdout, sys.stderr:
    print(s.encoding, s.errors, s.line_buffering, s.isatty(), s.name, s.fileno())

### interleaved
import sys
print('out'); print('err', file=sys.stderr); sys.stdout.write('end')

### error
def f(x):
    return 1 / x

print('before')
f(0)

### error in an import
import json
json.loads('{')

### chained errors
try:
    {}['a']
except KeyError as e:
    raise ValueError('b') from e

### syntax error
print(1)
x = = 2

### indentation
if True:
print(1)

### not utf-8
# -*- coding: latin-1 -*-
print('\xe9')

### exit 3
raise SystemExit(3)

### exit none
import sys
sys.exit()

### exit -1
import sys
sys.exit(-1)

### exit true
import sys
sys.exit(True)

### exit text
import sys
print('x')
sys.exit('the reason')

### exit 300
import sys
sys.exit(300)

### os exit
import os
print('lost')
os._exit(4)

### abort
import os
print('lost')
os.abort()

### segfault
import ctypes
ctypes.string_at(0)

### killed
import os, signal
os.kill(os.getpid(), signal.SIGTERM)

### interrupted
import os, signal
os.kill(os.getpid(), signal.SIGINT)
import time; time.sleep(5)

### handler
import signal, os
signal.signal(15, lambda *a: print('caught', a[0]))
os.kill(os.getpid(), 15)

### signals
import signal
print([(s, signal.getsignal(s)) for s in signal.valid_signals()], signal.pthread_sigmask(0, []))

### alarm
import signal, time
signal.alarm(1)
time.sleep(5)

### atexit
import atexit
atexit.register(print, 'first')
atexit.register(print, 'last')
print('body')

### atexit fails
import atexit
atexit.register(lambda: 1 / 0)
print('body')

### atexit after an error
import atexit
atexit.register(print, 'bye')
1 / 0

### finaliser
class A:
    def __del__(self): print('del', name)
name = 'n'
a = A()
print('body')

### finaliser in a cycle
class A:
    def __del__(self): print('del')
a = A(); a.a = a
del a

### unclosed file
f = open('out.txt', 'w')
f.write('kept')

### weakref finalize
import weakref
class A: pass
a = A()
weakref.finalize(a, print, 'finalised')

### temporary directory
import tempfile
d = tempfile.TemporaryDirectory()
print('made')

### thread
import threading, time
def f():
    time.sleep(0.1); print('thread')
threading.Thread(target=f).start()
print('main')

### daemon thread
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print('main')

### main thread
import threading, os
t = threading.main_thread()
print(t.name, t.native_id == os.getpid(), t is threading.current_thread(), threading.active_count())

### pool of threads
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as p: print(sorted(p.map(abs, [-3, 2, -1])))

### pool left open
from concurrent.futures import ThreadPoolExecutor
p = ThreadPoolExecutor(2)
p.submit(print, 'in the pool')

### excepthook
import sys
sys.excepthook = lambda *a: print('hook', a[0].__name__, a[2].tb_lineno)
1 / 0

### excepthook fails
import sys
def hook(*a): raise KeyError('k')
sys.excepthook = hook
1 / 0

### excepthook exits
import sys
def hook(*a): sys.exit(5)
sys.excepthook = hook
1 / 0

### thread error
import threading
t = threading.Thread(target=lambda: 1 / 0, name='t')
t.start(); t.join()

### unraisable
class A:
    def __del__(self): 1 / 0
A()
print('on')

### subprocess
import subprocess, sys
print(subprocess.run([sys.executable, '-c', 'print(2)'], capture_output=True).stdout)

### system
import os
print(os.system('exit 3'))

### fork
import os, sys
if os.fork() == 0:
    print('child')
    sys.exit(0)
os.wait()
print('parent')

### multiprocessing
import multiprocessing as m
def f(x): return x * x
if __name__ == '__main__':
    with m.Pool(2) as p: print(p.map(f, range(4)))

### multiprocessing spawn
import multiprocessing as m
def f(q): q.put(__name__)
if __name__ == '__main__':
    c = m.get_context('spawn'); q = c.SimpleQueue()
    p = c.Process(target=f, args=(q,)); p.start(); print(q.get()); p.join(); print(p.exitcode)

### asyncio
import asyncio
async def f():
    await asyncio.sleep(0)
    return 7
print(asyncio.run(f()))

### pickle
import pickle
class A:
    def __init__(self): self.x = 1
print(pickle.loads(pickle.dumps(A())).x)

### dataclass
from dataclasses import dataclass
@dataclass
class P:
    x: int
    y: int = 2
print(P(1))

### typing
import typing
def f(x: 'int') -> str: ...
print(typing.get_type_hints(f))

### inspect
import inspect
def f(): return 1
print(inspect.getsource(f), inspect.getmodule(f).__name__)

### own module
import helper
print(helper.VALUE, helper.__file__)

### recursion
def f(n): return f(n + 1)
try:
    f(0)
except RecursionError as e: print(e)

### deep recursion
import sys
sys.setrecursionlimit(50000)
def f(n): return n and f(n - 1)
print(f(20000))

### warnings
import warnings
warnings.warn('careful')
warnings.warn('old', DeprecationWarning)

### logging
import logging
logging.basicConfig()
logging.warning('line %d', 3)

### gc
import gc
print(gc.isenabled(), gc.get_threshold(), gc.garbage)

### limits
import resource as r
print([r.getrlimit(i) for i in range(16)])

### umask and nice
import os
print(os.umask(0), os.nice(0), os.getuid() == os.geteuid())

### capabilities
print([l for l in open('/proc/self/status') if l[:3] in ('Cap', 'NoN', 'Sig', 'Sec')])

### print to a closed pipe
import os, sys
os.close(1)
print('x')

### closed stdout
import sys
sys.stdout.close()

### stdout replaced
import sys, io
sys.stdout = io.StringIO()
print('unseen')

### unicode
print('\u00e9\U0001f600')
import sys
sys.stdout.reconfigure(encoding='utf-16')

### surrogates
print('\udc80')

### time
import time
print(time.tzname, 0 <= time.process_time() < 5, time.localtime(0)[:3])

### locale
import locale, sys
print(locale.getlocale(), sys.getfilesystemencoding(), sys.getdefaultencoding())

### c output
import ctypes
ctypes.CDLL(None).printf(b'from c\n')

### decimal
import decimal, fractions, statistics
print(decimal.getcontext(), fractions.Fraction(1, 3))

### module attributes
import json, random
print(json.__file__, random.__name__)

### exec
exec('a = 1')
print(a, eval('a + 1'))

### del builtins
import builtins
del builtins.print

### stopped threads
import threading
threading._shutdown = None

### main exits in a thread
import threading, sys
threading.Thread(target=sys.exit, args=(9,)).start()
"""


def _read() -> dict[str, str]:
    parts = _TEXT.split("### ")[1:]
    programs = (part.partition("\n") for part in parts)
    return {name: text.rstrip("\n") for name, _, text in programs}


PROGRAMS = _read()
"""Sources by what they are about."""
