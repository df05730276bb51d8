"""Programs that try to get out, to use more than they may, or to be paid for nothing, and a few honest ones.

Each is (verdicts that show it was contained, source). A program that gets through prints ESCAPED. The first line of its
standard input is JSON with hints about the host; the right answer is `answer` of the hints.
"""
# ruff: noqa: E501  one attack per line

HEADER = """
import ctypes, errno, json, os, signal, sys, time
host = json.loads(sys.stdin.readline())
libc = ctypes.CDLL(None, use_errno=True)
def attempt(function, bad=lambda result: True):
    try: result = function()
    except BaseException as error: print("refused", type(error).__name__); return
    print("ESCAPED" if bad(result) else "harmless", str(result)[:80], flush=True)
def system_call(number, *arguments):
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(number), *arguments) >= 0 or ctypes.get_errno() not in (1, 13, 38):
        print("ESCAPED", number, flush=True)
"""

RESOURCES = {
    "processes": ("WA RE", "for _ in range(20):\n attempt(os.fork)"),
    "processes by vfork": ("WA RE", "system_call(58)\nsystem_call(57)"),
    "threads": (
        "RE WA MLE",
        "import threading\nthreading.stack_size(32768)\nmade = 0\ntry:\n"
        " for _ in range(2000): threading.Thread(target=time.sleep, args=(30,), daemon=True).start(); made += 1\n"
        "except RuntimeError: pass\nprint('ESCAPED' if made > 100 else made, flush=True)\nos._exit(0)",
    ),
    "memory": ("MLE RE", "held = []\nfor _ in range(40): held.append(bytearray(b'x' * (16 << 20)))\nprint('ESCAPED')"),
    "memory by mmap": ("WA", "import mmap\nattempt(lambda: mmap.mmap(-1, 1 << 33))"),
    "memory by memfd": ("WA", "attempt(lambda: os.memfd_create('x'))"),
    "memory by shared segments": ("WA", "system_call(29, 0, 1 << 20, 0o1600)"),
    "memory in pipes": (
        "WA RE",
        "import fcntl\nfor _ in range(20):\n attempt(lambda: fcntl.fcntl(os.pipe()[1], 1031, 1 << 20))",
    ),
    "locked memory": ("WA", "system_call(151, 3)"),
    "disk by many files": (
        "WA RE",
        "total = 0\ntry:\n for n in range(64):\n  with open(f'f{n}', 'wb') as file: file.write(bytes(4 << 20)); total += 4\n"
        "except OSError: pass\nprint('ESCAPED' if total > 80 else total)",
    ),
    "one big file": (
        "WA RE",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nattempt(lambda: open('f', 'wb').write(bytes(64 << 20)))",
    ),
    "a sparse file": ("WA RE", "attempt(lambda: open('f', 'wb').truncate(1 << 33))"),
    "inodes": (
        "WA RE",
        "made = 0\ntry:\n for n in range(20000): os.mkdir(f'd{n}'); made += 1\nexcept OSError: pass\n"
        "print('ESCAPED' if made > 5000 else made)",
    ),
    "deep folders": (
        "WA RE",
        "try:\n for _ in range(3000): os.mkdir('d' * 50); os.chdir('d' * 50)\nexcept OSError: pass",
    ),
    "folders that resist removal": (
        "WA RE",
        "os.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)",
    ),
    "descriptors": (
        "WA RE",
        "held = []\ntry:\n for _ in range(3000): held.append(os.dup(1))\nexcept OSError: pass\n"
        "print('ESCAPED' if len(held) > 500 else 1)",
    ),
    "endless loop": ("TLE", "while True: pass"),
    "endless loop with signals ignored": (
        "TLE",
        "for number in range(1, 65):\n try: signal.signal(number, signal.SIG_IGN)\n except (OSError, ValueError): pass\n"
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
    ),
    "one call that never returns": ("TLE MLE", "sum(range(10 ** 12))"),
    "sleep": ("TLE", "time.sleep(10 ** 6)"),
    "sleep with closed outputs": ("TLE", "for fd in range(3): os.close(fd)\ntime.sleep(10 ** 6)"),
    "stopping itself": ("TLE RE", "os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass"),
    "slow output": ("TLE", "while True: os.write(1, b'.'); time.sleep(0.2)"),
    "endless output": ("OLE", "while True: print('x' * 1000)"),
    "endless errors": ("WA TLE", "for _ in range(3000): sys.stderr.write('e' * 1000)"),
    "one long line": ("OLE MLE", "sys.stdout.write('a' * (20 << 20))"),
    "stack": ("RE", "sys.setrecursionlimit(10 ** 9)\ndef f(x): return list(map(f, [x]))\nf(1)"),
    "higher limits": (
        "WA",
        "import resource as r\nfor name in ('AS', 'CPU', 'FSIZE', 'NOFILE', 'NPROC', 'CORE', 'STACK'):\n"
        " kind = getattr(r, 'RLIMIT_' + name); hard = r.getrlimit(kind)[1]\n"
        " print('ESCAPED') if hard == r.RLIM_INFINITY else attempt(lambda: r.setrlimit(kind, (hard * 2 + 1,) * 2))\n"
        "attempt(lambda: r.prlimit(host['judge'], r.RLIMIT_NOFILE))",
    ),
    "better priority": (
        "WA",
        "attempt(lambda: os.nice(-5), lambda r: r < 0)\nsystem_call(144, 0, 1, ctypes.byref(ctypes.c_int(1)))",
    ),
    "compiler bomb": ("RE MLE TLE CE WA", "exec('x=' + '+'.join(['1'] * 1000000))"),
}

INFORMATION = {
    "files of the host": (
        "WA",
        "for path in ('/etc/passwd', '/etc/hostname', '/root', '/home', '/proc/1/cmdline', '/sys', '/var', host['secret_file'],\n"
        "  '/../..' + host['secret_file'], '/proc/self/root' + host['secret_file']):\n"
        " attempt(lambda: os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read())",
    ),
    "its way up": (
        "WA",
        "for _ in range(9):\n try: os.chdir('..')\n except OSError: pass\nattempt(lambda: open('.' + host['secret_file']).read())",
    ),
    "environment": ("WA", "print('ESCAPED' if host['variable'] in os.environ else 'none')"),
    "environment of the judge": ("WA", "attempt(lambda: open(f\"/proc/{host['judge']}/environ\", 'rb').read())"),
    "own memory": ("WA", "attempt(lambda: open('/proc/self/mem', 'rb', 0))\nattempt(lambda: open('/proc/self/maps'))"),
    "memory of the judge": (
        "WA",
        "system_call(310, host['judge'], 0, 0, 0, 0, 0)\nsystem_call(101, 16, host['judge'], 0, 0)",
    ),
    "open descriptors": (
        "WA",
        "for fd in range(3, 1024):\n try: os.fstat(fd)\n except OSError: continue\n print('ESCAPED', fd)",
    ),
    "frames and objects": (
        "WA",
        "import gc\nfound = [o for o in gc.get_objects() if type(o) is dict and 'verdict' in o or type(o).__name__ in ('Zygote', 'Watch')]\n"
        "frame = sys._getframe()\nwhile frame:\n"
        " print('ESCAPED' if 'expected' in frame.f_locals else frame.f_code.co_name); frame = frame.f_back",
    ),
    "kernel log and keys": (
        "WA",
        "system_call(103, 3, ctypes.create_string_buffer(99), 99)\nsystem_call(250, 0, -3, 0, 0, 0)",
    ),
    "shared memory files": ("WA", "attempt(lambda: os.listdir('/dev/shm'))"),
    "devices": (
        "WA",
        "for name in ('mem', 'kvm', 'fuse', 'tty', 'ptmx', 'vda', 'nvidia0', 'net/tun'):\n attempt(lambda: os.open('/dev/' + name, os.O_RDWR))",
    ),
    "modules of the judge": (
        "WA",
        "for name in ('rewards', 'rewards.sandbox.jail.zygote', 'zygote', 'job', 'conftest'):\n attempt(lambda: __import__(name))\n"
        "print([name for name in sys.modules if 'rewards' in name] and 'ESCAPED')",
    ),
}

NETWORK = {
    "tcp": ("WA", "import socket\nattempt(lambda: socket.create_connection(('127.0.0.1', host['port']), 1))"),
    "udp": (
        "WA",
        "import socket\nattempt(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', host['port'])))",
    ),
    "listening": ("WA", "import socket\nattempt(lambda: socket.create_server(('127.0.0.1', 0)))"),
    "unix": (
        "WA",
        "import socket\nattempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + host['unix']))\nattempt(socket.socketpair)",
    ),
    "odd families": (
        "WA",
        "import socket\nfor family, kind in ((40, 1), (38, 5), (16, 3), (17, 3), (2, 3)):\n attempt(lambda: socket.socket(family, kind))",
    ),
    "io_uring": ("WA", "system_call(425, 1, ctypes.create_string_buffer(120))"),
}

PRIVILEGE = {
    "files changed through their names": (
        "WA",
        "path = host['own_file']\nfor change in (lambda: os.chmod(path, 0), lambda: os.utime(path, (1, 1)), lambda: os.truncate(path, 0),\n"
        "  lambda: os.chown(path, -1, -1), lambda: os.setxattr(path, 'user.x', b'x'), lambda: os.rename(path, path + 'x'),\n"
        "  lambda: os.unlink(path), lambda: os.link(path, 'l'), lambda: os.fchmod(os.open(json.__file__, os.O_RDONLY), 0)): attempt(change)",
    ),
    "signals": (
        "WA RE TLE",
        "for pid in (host['judge'], host['victim'], os.getppid(), 1):\n attempt(lambda: os.kill(pid, 9))\nos.killpg(0, 15)",
    ),
    "signals to everybody": ("WA RE TLE", "os.kill(-1, 9)"),
    "descriptors of processes": (
        "WA",
        "system_call(434, host['victim'], 0)\nsystem_call(438, 3, 0, 0)\nsystem_call(424, 3, 9, 0, 0)",
    ),
    "user ids": (
        "WA",
        "attempt(lambda: os.setuid(0))\nattempt(lambda: os.setresuid(0, 0, 0))\nattempt(lambda: os.setgroups([0]))",
    ),
    "mounts": (
        "WA",
        "for number in (155, 161, 165, 166, 428, 429, 430, 442): system_call(number, b'/', b'/', b'tmpfs', 0, 0)",
    ),
    "namespaces": (
        "WA",
        "for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000): system_call(272, flag)\nsystem_call(308, 0, 0)\nsystem_call(56, 0x10000011, 0, 0, 0, 0)",
    ),
    "namespaces by clone3": (
        "WA",
        "words = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)\nsystem_call(435, words, 88)",
    ),
    "kernel surface": (
        "WA",
        "for number in (246, 298, 320, 321, 323, 425, 135, 154, 159, 169, 170, 172, 175): system_call(number, 0, 0, 0, 0, 0)",
    ),
    "other system call tables": (
        "RE WA",
        "libc.syscall.restype = ctypes.c_long\nprint('ESCAPED' if libc.syscall(ctypes.c_long(0x40000027)) > 0 else 1)",
    ),
    "execution": (
        "WA",
        "import subprocess\nattempt(lambda: subprocess.run(['/bin/sh', '-c', 'id']))\nattempt(lambda: os.execv(sys.executable, ['python', '-c', 'print(1)']))",
    ),
    "new privileges": (
        "WA",
        "print('ESCAPED' if libc.prctl(39, 0, 0, 0, 0) != 1 or libc.prctl(21, 0, 0, 0, 0) != 2 else 'none')",
    ),
    "outliving the zygote": (
        "WA",
        "for option in (1, 4, 8, 36):\n print('ESCAPED' if libc.prctl(option, 0, 0, 0, 0) == 0 else 'refused')\nsystem_call(112)\nsystem_call(109, 0, 0)",
    ),
    "control files": (
        "WA",
        "for path in ('/proc/sys/kernel/core_pattern', '/proc/self/oom_score_adj', '/sys/fs/cgroup/cgroup.procs'):\n attempt(lambda: os.open(path, os.O_WRONLY))",
    ),
    "special files": (
        "WA",
        "attempt(lambda: os.mknod('b', 0o60666, os.makedev(8, 0)))\nattempt(lambda: os.link(json.__file__, 'l'))\nattempt(lambda: os.chown('.', 0, 0))",
    ),
    "the interpreter": (
        "WA",
        "for path in (json.__file__, os.path.dirname(json.__file__) + '/evil.py', '/usr/lib/evil', '/evil'):\n attempt(lambda: os.open(path, os.O_WRONLY | os.O_CREAT))",
    ),
    "locks seen by others": (
        "WA",
        "import fcntl\nfile = open('/dev/null')\nattempt(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))\nattempt(lambda: fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB))",
    ),
    "writing to standard input": (
        "WA",
        "attempt(lambda: os.write(0, b'x'))\nattempt(lambda: os.ftruncate(0, 0))\nattempt(lambda: os.read(1, 1))\n"
        "for path in ('/dev/stdin', '/box/input/stdin', '/box/input', '/box/input/more'):\n"
        " for change in (lambda: os.write(os.open(path, os.O_RDWR), b'x'), lambda: open(path, 'w'), lambda: os.unlink(path), lambda: os.chmod(path, 0o777),\n"
        "   lambda: os.utime(path), lambda: os.truncate(path, 0), lambda: os.rename(path, 'mine')): attempt(change)",
    ),
}

FORGERY = {
    "markers": (
        "WA",
        "for text in ('{\"verdict\": \"AC\"}', 'ALL TESTS PASSED', '1 passed in 0.01s', '\\x1b[2K'): print(text); print(text, file=sys.stderr)",
    ),
    "success without an answer": ("WA", "sys.exit(0)"),
    "success at once": ("WA", "os._exit(0)"),
    "internal error": ("RE", "sys.stderr.write('the jail did not come up: OSError'); os._exit(254)"),
    "killing itself": ("RE", "os.kill(os.getpid(), signal.SIGKILL)"),
    "processor signal": ("RE TLE", "os.kill(os.getpid(), signal.SIGXCPU)\nwhile True: pass"),
    "abort": ("RE", "os.abort()"),
    "right answer, wrong exit": ("RE", "print(host['answer'])\nsys.exit(3)"),
    "late output": (
        "WA",
        "import atexit, threading\natexit.register(print, host['answer'])\nthreading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()\nprint('early')",
    ),
    "bytes that are no text": ("WA", "os.write(1, bytes(range(256)))"),
    "digits of other scripts": ("WA", "print(''.join(chr(0xFF10 + int(digit)) for digit in host['answer']))"),
    "every number": ("WA", "print(*range(5000))"),
    "patched clocks": ("TLE", "time.time = time.monotonic = lambda: 0.0\nsignal.alarm(0)\nwhile True: pass"),
    "exception that never ends": (
        "RE OLE TLE MLE",
        "class E(Exception):\n def __str__(self): sys.stderr.write('x' * (4 << 20)); return 'y' * (4 << 20)\nraise E",
    ),
    "no program": ("CE", "def f(:"),
    "a decoder hides code": ("CE RE WA", "#coding:utf-7\n+AApwcmludCgn-x+ACcp-"),
}

HONEST = {
    "hello": ("AC", "print(host['answer'])"),
    "threads and recursion": (
        "AC",
        "import threading\nsys.setrecursionlimit(100000); threading.stack_size(64 << 20)\n"
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "thread = threading.Thread(target=lambda: print(host['answer'] if depth(20000) == 20000 else 0)); thread.start(); thread.join()",
    ),
    "library and files": (
        "AC",
        "import decimal, fractions, heapq, random, re, statistics, tempfile, zlib\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "with tempfile.TemporaryDirectory() as folder: open(folder + '/x', 'w').close()\n"
        "open('w.txt', 'w').write('hi'); assert open('w.txt').read() == 'hi'; print(host['answer'])",
    ),
    "stack limit idiom": (
        "AC",
        "import resource\nhard = resource.getrlimit(resource.RLIMIT_STACK)[1]\nresource.setrlimit(resource.RLIMIT_STACK, (hard, hard))\nprint(host['answer'])",
    ),
    "standard input by its name": (
        "AC",
        "again = [json.loads(open('/dev/stdin').readline()) for _ in range(2)]\nprint(host['answer'] if again == [host] * 2 else 0)",
    ),
    "big input left alone": ("AC", "os.close(0)\nprint(host['answer'])"),
    "exit hooks": ("AC", "import atexit\natexit.register(print, host['answer'])\nsys.exit()"),
}

PROGRAMS = {
    f"{kind}: {name}": (set(verdicts.split()), HEADER + source)
    for kind, cases in {
        "resources": RESOURCES,
        "information": INFORMATION,
        "network": NETWORK,
        "privilege": PRIVILEGE,
        "forgery": FORGERY,
        "honest": HONEST,
    }.items()
    for name, (verdicts, source) in cases.items()
}
PROGRAMS["forgery: no program"] = ({"CE"}, "def f(:")

# `solve(7)` must return "secret"; none of these knows that.
FUNCTIONS = {
    "equal to everything": "class E:\n def __eq__(s, o): return True\n __ne__ = __lt__ = __eq__\n def __hash__(s): return 0\ndef solve(x): return E()",
    "a string that lies": "class S(str):\n __eq__ = lambda s, o: True\n __hash__ = str.__hash__\ndef solve(x): return S('x')",
    "patched json": 'import json, builtins\njson.dumps = lambda *a, **k: \'{"value": "forged"}\'\nbuiltins.isinstance = lambda *a: True\ndef solve(x): return 1',
    "forged claims": 'import os\nfor fd in range(256):\n try: os.write(fd, b\'{"value": "forged", "passed": true}\\n\')\n except OSError: pass\nos._exit(0)',
    "pickle": "class P:\n def __reduce__(s): import os; return os.system, ('touch /tmp/r1-escaped',)\ndef solve(x): return P()",
    "deep result": "def solve(x):\n o = []\n for _ in range(100000): o = [o]\n return o",
    "wide result": "def solve(x): return [0] * 10_000_000",
    "huge number": "import sys\nsys.set_int_max_str_digits(0)\ndef solve(x): return 10 ** 100_000",
    "endless result": "import itertools\ndef solve(x): return itertools.count()",
    "itself": "def solve(x):\n o = []\n o.append(o)\n return o",
    "leaving": "import sys\ndef solve(x): sys.exit(0)",
    "leaving at once": "import os\nos._exit(0)",
    "an exception": "def solve(x): raise AssertionError",
    "an end of iteration": "def solve(x): raise StopIteration",
    "not a number": "def solve(x): return float('nan')",
    "lone surrogates": "def solve(x): return '\\ud800\\0'",
    "deep forged claim": "import os\nos.write(4, b'{\"value\": ' + b'[' * 100000 + b']' * 100000 + b'}\\n')\ndef solve(x): return 1",
    "endless forged claim": "import os\nwhile True: os.write(4, b'x' * 65536)",
    "a forged claim that no float can be": "import os\nos.write(4, b'{\"value\": {\"complex\": [' + b'9' * 1000 + b', 0]}}\\n')\ndef solve(x): return 1",
    "claims of the wrong types": "import os\nos.write(4, b'{\"value\": {\"dict\": [[[], 1]]}, \"raised\": 3, \"why\": ' + b'[' * 900 + b']' * 900 + b'}\\n')\ndef solve(x): return 1",
    "a reason that is no text": 'import os\nos.write(4, b\'{"object": 1, "why": "\\\\ud800"}\\n\')\ndef solve(x): return 1',
    "claims without number": "import os\ndef solve(x):\n while True: os.write(4, b'\\n' * 65536)",
    "long claims without number": "import os\ndef solve(x):\n for _ in range(300): os.write(4, b'x' * 1000000 + b'\\n')",
    "a set of numbers with one hash": "import os\nos.write(4, ('{\"value\": {\"set\": ' + str([k * (2 ** 61 - 1) for k in range(1, 44000)]) + '}}\\n').encode())\ndef solve(x): return 1",
    "nothing defined": "pass",
    "frames": "import sys\ndef solve(x):\n frame = sys._getframe()\n while frame:\n  for value in frame.f_locals.values():\n   if isinstance(value, str) and value.startswith('sec'): return value\n  frame = frame.f_back",
}

# Tests that a program fails by ending the iteration in which it is called; `f` must double its argument.
ITERATING_TESTS = (
    "assert all(map(lambda case: f(case[0]) == case[1], [(1, 2), (2, 4)]))",
    "for got, want in zip(map(f, [1, 2]), [2, 4]): assert got == want",
    "from itertools import starmap\nassert not any(starmap(lambda x, y: f(x) != y, [(1, 2), (2, 4)]))",
)
# `f` for each of them.
ENDED_ITERATIONS = {
    "an end of iteration": "def f(x): raise StopIteration",
    "an end with a value": "def f(x): raise StopIteration(2)",
    "a kind of end": "class E(StopIteration): pass\ndef f(x): raise E",
    "an asynchronous end": "def f(x): raise StopAsyncIteration",
    "next of nothing": "def f(x): return next(iter(()))",
    "an object that ends": "class E:\n def __next__(self): raise StopIteration\n def __call__(self, x): raise StopIteration\nf = E()",
    "a forged end": 'import os\ndef f(x): os.write(4, b\'{"raised": ["StopIteration", ""]}\\n\'); os._exit(0)',
}
