"""Somebody who forges the messages between two ends of vdens, for impostors.rs.

cable PATH PANEL PLACE    the far end of the cable at PATH, which names another place as its own
switch DIRECTORY PANEL PLACE   a client of the switch in DIRECTORY that poses as a switch with a hub
frames INTERFACE          sends the messages of a plugged client out of an interface

The first two go on until standard input ends. Each message is sent as in version 1 of the protocol, where
it has only to name its cable, and as in version 2, as well as somebody can who has read what the victim
sends him."""
import os
import select
import socket
import struct
import sys

PREFIX = bytes.fromhex("0180c200000302") + b"vdens\x88\xb5VDEN"
HELLO, PLUGGED, DECLINED, ACCEPT, SUPER = range(1, 6)
OWN = 0x666


def ticket(panel, place):
    return struct.pack(">QB", panel, len(place)) + place.encode()


def old(cable, kind, rest=b""):
    return PREFIX + bytes([1, kind]) + cable + rest


def new(cable, to, kind, rest=b""):
    return PREFIX + bytes([2, kind]) + cable + struct.pack(">QQ", to, OWN) + rest


def forged(cable, to, panel, place):
    place = ticket(panel, place)
    return [
        old(cable, PLUGGED),
        old(cable, HELLO, b"\1" + place),
        old(cable, HELLO, b"\0" + place),
        new(cable, to, HELLO, struct.pack(">I", 1) + place),
        new(cable, to, PLUGGED),
    ]


def say(end, messages):
    for message in messages:
        try:
            end.send(message)
        except OSError:
            return


def over(timeout):
    """Whether standard input has ended, after a moment."""
    return select.select([0], [], [], timeout)[0] and not os.read(0, 1)


def cable(path, panel, place):
    where = os.stat(path)
    name = struct.pack(">QQ", where.st_dev, where.st_ino)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.bind(path + "+")
    os.chmod(path + "+", 0o777)
    try:
        end.connect(path)
        end.setblocking(False)
        victim = 0
        while True:
            say(end, forged(name, victim, panel, place))
            print("forged", flush=True)
            if over(0.05):
                return
            try:
                while True:
                    frame = end.recv(10000)
                    if frame.startswith(PREFIX + b"\2\1"):
                        victim = struct.unpack(">Q", frame[44:52])[0]
            except BlockingIOError:
                pass
    finally:
        os.unlink(path + "+")


def switch(directory, panel, place):
    path = f"{os.getcwd()}/impostor"
    data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    data.bind(path)
    control = socket.socket(socket.AF_UNIX)
    control.connect(directory + "/ctl")
    address = struct.pack("=H108s", socket.AF_UNIX, os.fsencode(path))
    control.sendall(struct.pack("=III", 0xFEEDFACE, 3, 0) + address + b"impostor")
    data.connect(control.recv(200)[2:].split(b"\0")[0])
    data.setblocking(False)
    os.unlink(path)
    print("forged", flush=True)
    guesses = [0, 1, OWN]
    while not over(0.0002):
        say(data, forged(bytes(16), guesses[0], panel, place)[2:4])
        guesses = guesses[1:] + guesses[:1]


def frames(interface):
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((interface, 0))
    for to in (0, 1, OWN):
        for kind in (PLUGGED, DECLINED):
            sender.send(old(bytes(16), kind))
            sender.send(new(bytes(16), to, kind))
        sender.send(new(bytes(16), to, ACCEPT, b"\xff" * 4))
    for version in (1, 2):
        sender.send(PREFIX + bytes([version, SUPER]) + bytes(10 + 60))


what, *where = sys.argv[1:]
if what == "frames":
    frames(*where)
else:
    {"cable": cable, "switch": switch}[what](where[0], int(where[1]), where[2])
