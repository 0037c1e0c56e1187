"""A hostile client of a switch, for hostile_clients.rs: WHAT DIRECTORY. Once it has done its harm
it prints `done`, and keeps what it holds until its standard input ends."""
import errno
import json
import os
import random
import resource
import socket
import struct
import sys
import time

DIRECTORY = sys.argv[2]
PORTS_IN = os.environ.get("PORTS_IN", os.getcwd())
BROADCAST = b"\xff" * 6
PREFIX = bytes.fromhex("0180c200000302") + b"vdens\x88\xb5VDEN\x02"
random.seed(4711)
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))


def request(path, description=b"hostile", magic=0xFEEDFACE, version=3, kind=0):
    address = struct.pack("=H108s", socket.AF_UNIX, os.fsencode(path))
    return struct.pack("=III", magic, version, kind) + address + description


def control():
    stream = socket.socket(socket.AF_UNIX)
    # A connect with a timeout does not wait for room in a full backlog.
    stream.connect(DIRECTORY + "/ctl")
    stream.settimeout(60)
    return stream


def answer(stream, what):
    """What the switch answers, nothing if it hangs up."""
    try:
        stream.sendall(what)
        return stream.recv(200)
    except (BrokenPipeError, ConnectionResetError):
        return b""


def is_open(stream):
    stream.setblocking(False)
    try:
        return stream.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


class Port:
    count = 0

    def __init__(self, description=b"hostile"):
        Port.count += 1
        path = f"{PORTS_IN}/h{os.getpid()}-{Port.count}"
        self.data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.data.bind(path)
        self.data.settimeout(60)
        try:
            self.control = control()
            reply = answer(self.control, request(path, description))
            if not reply:
                raise ConnectionRefusedError
            self.data.connect(reply[2:].split(b"\0")[0])
        finally:
            os.unlink(path)

    def send(self, datagram):
        self.data.send(datagram)


def frame(source, destination=BROADCAST, rest=b"\x88\xb6" + bytes(46)):
    return destination + b"\x02\x66" + source.to_bytes(4, "big") + rest


def nonsense():
    for _ in range(3000):
        control().close()
    halves = [control() for _ in range(200)]
    for stream in halves:
        try:
            stream.sendall(request("/nowhere")[:50])
        except BrokenPipeError:
            pass  # The switch has refused it, in favour of those who came after it.
    good = request("/nowhere")
    wrong = [
        request("/nowhere", magic=0xDEADBEEF),
        request("/nowhere", version=2),
        request("/nowhere", kind=7),
        request("/nowhere", kind=1),
        good + bytes(1000),
        b"GET / HTTP/1.1\r\n\r\n",
    ]
    wrong += [random.randbytes(random.randint(4, 400)) for _ in range(200)]
    for what in wrong:
        assert answer(control(), what) == b"", what
    # Those who dawdle cost nobody their port, and are turned away in time.
    Port()
    busy = 1 + os.getloadavg()[0] / os.cpu_count()
    deadline = time.monotonic() + 8 * busy
    while any(is_open(stream) for stream in halves):
        assert time.monotonic() < deadline, "half requests are still waited for"
        time.sleep(0.1)


def name():
    """Asks for a port with sockets as named on the command line; says which were accepted."""
    accepted = [path for path in sys.argv[3:] if answer(control(), request(path))]
    print(json.dumps(accepted))


def datagrams():
    port = Port()
    for length in [0, 1, 13, 9235, 20000, 60000, 100000] * 50:
        port.send(bytes(length))
    port.send(frame(1))
    return [port]


def flood():
    deaf, port = Port(b"deaf"), Port()
    port.data.settimeout(60)
    start = time.monotonic()
    for source in range(140000):
        port.send(frame(source))
        if source % 100 == 0:
            time.sleep(max(0, start + source / 11000 - time.monotonic()))
    print(f"{time.monotonic() - start} seconds")
    return [deaf, port]


def many():
    ports = [Port() for _ in range(200)]
    ports[0].send(frame(1))
    for port in ports[1:]:
        while port.data.recv(20000) != frame(1):
            pass
    return ports


def descriptors():
    ports = []
    try:
        while len(ports) < 1000:
            ports.append(Port())
    except ConnectionRefusedError:
        pass
    print(len(ports))
    return ports


def superframes():
    port = Port(b"hostile vdens=0:1")
    # The envelope of the switch's hello ends with the switch's nonce. The client answers with that
    # and its own.
    nonce = port.data.recv(1000)[44:52]
    port.send(PREFIX + b"\x04" + bytes(16) + nonce + struct.pack(">Q", 1) + b"\xff" * 4)
    victim = bytes.fromhex("020000000002")
    tcp4 = bytes.fromhex("080045000028000040004006") + bytes(2) + bytes([10, 0, 0, 66, 10, 0, 0, 2]) + bytes(20)
    udp6 = bytes.fromhex("86dd6000000000081140") + bytes(32) + bytes(8)
    for n in range(20000):
        kinds = (0, 1, 2, 3, 4, 0x81, random.randint(0, 255))
        header = struct.pack(
            "=BBHHHHH",
            random.choice((0, 1, 2, random.randint(0, 255))),
            random.choice((0, 1, 3, 4, 5, 0x81, random.randint(0, 255))),
            *(random.choice((0, 14, 20, 34, 54, 1448, 65535, random.randint(0, 65535))) for _ in range(5)),
        )
        rest = random.choice((tcp4, udp6, b"", b"\x81\x00", b"\x88\xb5VDEN"))
        rest += random.randbytes(random.choice((0, 3, 40, 1500, 9000, 60000)))
        body = random.choice((BROADCAST, victim)) + b"\x02\x66" + n.to_bytes(4, "big") + rest
        kind = 5 if n % 4 else random.choice(kinds)
        wrapped = PREFIX + bytes([kind]) + header + body
        if n % 7 == 0:
            wrapped = wrapped[: random.randint(0, len(wrapped))]
        if n % 11 == 0:
            wrapped = PREFIX + b"\x05" + bytes(10) + wrapped
        try:
            port.send(wrapped)
        except OSError as error:
            assert error.errno == errno.EMSGSIZE, error
        if n % 64 == 0:
            # What it is sent it reads, so that it is sent more.
            port.data.setblocking(False)
            try:
                while port.data.recv(200000):
                    pass
            except BlockingIOError:
                pass
            port.data.settimeout(60)
    return [port]


def ports():
    """Opens the number of ports on the command line, or as many as it gets, and prints how many.
    Anybody may send to them."""
    os.umask(0)
    held = []
    try:
        while len(held) < int(sys.argv[3]):
            held.append(Port())
    except ConnectionRefusedError:
        pass
    print(len(held))
    return held


def deaf():
    """Ports that never read. One of them floods the others with the number of frames on the command
    line."""
    held = ports()
    held[0].data.settimeout(60)
    for _ in range(int(sys.argv[4])):
        held[0].send(frame(1, rest=b"\x88\xb6" + bytes(8986)))
    return held


held = globals()[sys.argv[1]]()
print("done", flush=True)
sys.stdin.read()
