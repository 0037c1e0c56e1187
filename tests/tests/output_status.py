"""A process of the user whose answers to vdectl status are nonsense, for output.rs: HOW
[PID]. It listens on the socket of process PID, its own by default, prints "ready" and answers
until its standard input ends."""
import array
import json
import os
import select
import socket
import sys

HOW = sys.argv[1]
PID = int(sys.argv[2]) if len(sys.argv) > 2 else os.getpid()
HUGE = 2**64 - 1
EVIL = "\x1b]0;owned\x07\nforged line\u009b2J\u202e"


def memory(data=b""):
    fd = os.memfd_create("answer")
    with open(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def process(**changes):
    traffic = {"frames": HUGE, "bytes": HUGE, "dropped": HUGE}
    counters = {"frames": HUGE, "bytes": HUGE, "dropped": {"malformed": HUGE, "queue_full": HUGE, "undeliverable": HUGE}}
    port = {"number": 2**32 - 1, "client": {"description": EVIL, "uid": 2**32 - 1, "pid": 2**32 - 1}, "received": HUGE,
            "sent": HUGE, "dropped": {EVIL: HUGE, "b": HUGE, "c": HUGE}}
    station = {"mac": EVIL, "vlan": 65535, "port": EVIL, "age": HUGE}
    report = {"carrier": True, "tier": EVIL, "reason": EVIL, "peer": port["client"], "received": counters, "sent": counters,
              "plugin": {"scheme": EVIL, "version": EVIL, "file": EVIL}, "switch": {"ports": [port] * 3, "fdb": [station] * 99},
              "extra": {EVIL: EVIL}}
    link = {"interface": EVIL, "vnl": EVIL, "service": "served", "worker": 2**32 - 1, "restarts": 2**32 - 1, "last_end": EVIL,
            "interface_traffic": {"received": traffic, "sent": traffic}, "report": report}
    whole = {"pid": 1, "program": EVIL, "version": EVIL, "command": [EVIL, ""], "directory": EVIL, "started": HUGE,
             "no_panel": EVIL, "links": [link]}
    return json.dumps(whole | changes).encode()


def answer():
    if HOW == "absurd":
        return memory(process())
    if HOW == "negative":
        return memory(process(started=-1))
    if HOW == "quoted":
        return memory(process(links=[{"vnl": "x", "service": EVIL + "x" * 10_000_000, "restarts": 0}]))
    if HOW == "deep":
        return memory(b"[" * 8_000_000)
    if HOW == "compact":
        ports = b",".join([b"{}"] * 5_000_000)
        return memory(process(links=[]).replace(b'"links": []', b'"links": [{"vnl": "", "service": "served", "restarts": 0, '
                                                b'"report": {"switch": {"ports": [' + ports + b"]}}}]"))
    if HOW == "sparse":
        fd = memory()
        os.truncate(fd, 2**50)
        return fd
    if HOW == "endless":
        return os.open("/dev/zero", os.O_RDONLY)
    if HOW == "pipe":
        return os.pipe()[0]
    raise SystemExit("unknown: " + HOW)


namespace = os.stat("/proc/self/ns/pid").st_ino
directory = f"{os.environ['XDG_RUNTIME_DIR']}/vdens/status-{namespace}"
os.umask(0o077)
os.makedirs(directory, exist_ok=True)
path = f"{directory}/{PID}"
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(path)
listener.listen()
answer_fd = None if HOW in ("silent", "words", "jumble", "flood") else answer()
print("ready", flush=True)
silent = []
while True:
    readable = select.select([listener, sys.stdin], [], [])[0]
    if sys.stdin in readable:
        os.unlink(path)
        break
    asker = listener.accept()[0]
    try:
        if HOW == "silent":
            silent.append(asker)
        elif HOW == "words":
            asker.send(json.dumps({"none": EVIL + "x" * 4000}).encode())
        elif HOW == "jumble":
            asker.send(EVIL.encode() + b"x" * 4000)
        elif HOW == "flood":
            asker.send(json.dumps({"none": "x" * 100000}).encode())
        else:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [answer_fd]))]
            asker.sendmsg([b'"file"'], rights)
    except BrokenPipeError:
        # It has hung up: it believes nothing from here.
        pass
