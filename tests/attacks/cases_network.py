"""Attacks over the network, and over sockets of the host's own."""

from __future__ import annotations

from attacks.frame import Attack, c, python

CASES = [
    Attack(
        name="sockets of every family",
        tries="sockets of any family but unix: inet, netlink, packet, vsock, alg, bluetooth and so on",
        source=python("""
import socket
for family in range(46):
    if family == socket.AF_UNIX:
        continue
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind)
            print("BREACH:", family, kind)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                print("BREACH: it was looked at:", family, kind, error)
    attempt(f"a pair of family {family}", lambda: socket.socketpair(family, socket.SOCK_STREAM))
"""),
        says=b"held: a pair of family 45",
    ),
    Attack(
        name="services of the host's loopback",
        tries="to connect to a port that listens on the host's loopback, in every way there is",
        must_hold="no connection arrives",
        source=python("""
import socket
for address in ["127.0.0.1", "::1", "localhost", "0.0.0.0"]:
    attempt("connect to " + address, lambda: socket.create_connection((address, PORT), 1))
attempt("by bash", lambda: os.system(f"exec 3<>/dev/tcp/127.0.0.1/{PORT}") == 0 or int("x"))
print("tried", PORT)
"""),
        says=b"tried",
    ),
    Attack(
        name="abstract sockets of the host",
        tries="to connect to an abstract unix socket that listens on the host",
        must_hold="it has another network namespace, in which there is no such name",
        source=python("""
import socket
attempt("stream", lambda: socket.socket(socket.AF_UNIX).connect(NAME))
attempt("datagram", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", NAME))
names = [line.split()[-1] for line in open("/proc/self/net/unix").read().splitlines()[1:]]
if any(name.startswith("@") for name in names):
    print("BREACH:", names)
print("tried", NAME[1:])
"""),
        says=b"tried k15-attacks",
    ),
    Attack(
        name="the network as /proc tells it",
        tries="to learn of the host's interfaces, connections and routes",
        must_hold="there is a loopback that is down, and nothing else",
        source=python("""
devices = [line.split(":")[0].strip() for line in open("/proc/self/net/dev").read().splitlines()[2:]]
if devices not in ([], ["lo"]):
    print("BREACH:", devices)
for name in ["tcp", "udp", "route", "raw", "packet"]:
    try:
        lines = open("/proc/self/net/" + name).read().splitlines()[1:]
    except OSError:
        continue
    if lines:
        print("BREACH:", name, lines)
print("looked")
"""),
        says=b"looked",
    ),
    Attack(
        name="a socket in the file system",
        tries="to talk to sockets of services by their paths",
        source=python("""
import socket
for path in ["/run/docker.sock", "/var/run/docker.sock", "/run/systemd/private", "/dev/log",
             "/run/dbus/system_bus_socket", "/run/containerd/containerd.sock", "/tmp/.X11-unix/X0"]:
    attempt(path, lambda: socket.socket(socket.AF_UNIX).connect(path))
"""),
        says=b"held: /tmp/.X11-unix/X0",
    ),
    Attack(
        name="credentials of another",
        tries="to claim to be root, or init, in a message's credentials",
        language="c",
        source=c("""
int main(void) {
  int ends[2], on = 1;
  if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends)) return 1;
  setsockopt(ends[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  struct ucred claims[] = {{1, 0, 0}, {getpid(), 0, 0}, {1, getuid(), getgid()}};
  for (int i = 0; i < 3; i++) {
    union { char room[64]; struct cmsghdr head; } control = {0};
    struct iovec part = {"x", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = CMSG_SPACE(sizeof *claims)};
    control.head = (struct cmsghdr){CMSG_LEN(sizeof *claims), SOL_SOCKET, SCM_CREDENTIALS};
    memcpy(CMSG_DATA(&control.head), claims + i, sizeof *claims);
    attempt("credentials", sendmsg(ends[0], &message, 0));
  }
  puts("claimed");
}
"""),
        says=b"claimed",
    ),
]
