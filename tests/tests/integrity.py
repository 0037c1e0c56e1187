"""Checked traffic between two namespaces, for integrity.rs.

udp PEER...            exchanges datagrams of 1 to 8,000 bytes with each peer until SIGTERM, checks those that come, says how many
frames INTERFACE MAC MTU
                       sends numbered frames, untagged and VLAN-tagged, to the station, and checks what it returns
echo INTERFACE         returns such frames until SIGTERM
errors                 says how many wrong checksums this namespace has seen
"""
import ctypes
import random
import select
import signal
import socket
import struct
import sys
import time

CONTENTS = random.Random(4711).randbytes(20000)
PORT = 5300
# The second local experimental ethertype (IEEE 802, clause 9): the first is the product's own.
ETHERTYPE, TPID = struct.pack("!H", 0x88B6), b"\x81\x00"
ASK, ANSWER = b"A", b"B"
# packet(7), if_packet.h.
ETH_P_ALL, SOL_PACKET, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING, VLAN_VALID, SO_ATTACH_FILTER = 3, 263, 8, 23, 0x10, 26

is_over = False


def end(*_):
    global is_over
    is_over = True


def contents(length):
    return CONTENTS[length : 2 * length]


def udp(*peers):
    pairs = []
    for peer in peers:
        family = socket.AF_INET6 if ":" in peer else socket.AF_INET
        plug = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            plug.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        plug.bind(("", PORT))
        plug.setblocking(False)
        pairs.append((plug, peer))
    came, due = 0, time.monotonic()
    while not is_over:
        # 100 a second for each: the noise is not to drown the rest.
        is_due = time.monotonic() >= due
        due += 0.01 if is_due else 0
        for plug, peer in pairs if is_due else []:
            length = random.randint(1, random.choice((64, 8000)))
            try:
                plug.sendto(contents(length), (peer, PORT))
            except OSError:
                pass  # The queue is full.
        for plug in select.select([plug for plug, _ in pairs], [], [], 0.005)[0]:
            data = plug.recv(65536)
            if data != contents(len(data)):
                sys.exit(f"a datagram of {len(data)} bytes came changed")
            came += 1
    print(came)


def packet_socket(interface):
    plug = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    plug.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    plug.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    # Only the test's own frames, tagged or not (filter.h): load half-word 12; equal?; is there a
    # tag?; half-word 16; equal?
    code = [(0x28, 0, 0, 12), (0x15, 3, 0, 0x88B6), (0x15, 0, 3, 0x8100), (0x28, 0, 0, 16), (0x15, 0, 1, 0x88B6)]
    code += [(0x06, 0, 0, 1 << 18), (0x06, 0, 0, 0)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    plug.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 7, ctypes.addressof(code)))
    plug.bind((interface, ETH_P_ALL))
    return plug


def receive(plug, kind):
    """A frame's source, its tag as on the wire, and what it carries; None if it is another's."""
    frame, ancillary, _, _ = plug.recvmsg(20000, 64)
    tag, rest = b"", frame[12:]
    for _, what, data in ancillary:
        status, *_, tci, _ = struct.unpack("IIIHHHH", data[:20])
        if what == PACKET_AUXDATA and status & VLAN_VALID:
            tag = TPID + struct.pack("!H", tci)
    if rest.startswith(TPID):
        tag, rest = tag + rest[:4], rest[4:]
    if not rest.startswith(ETHERTYPE + kind):
        return None
    return frame[6:12], tag, rest[3:]


def frames(interface, mac, mtu):
    plug = packet_socket(interface)
    here, there = plug.getsockname()[4], bytes.fromhex(mac.replace(":", ""))
    for number in range(200):
        length = random.choice((0, 28, int(mtu) - 7, random.randint(0, int(mtu) - 7)))
        body = struct.pack("!IH", number, length) + contents(length)
        tci = random.choice((1, 7, 100, 4094)) | random.randint(0, 7) << 13
        tag = random.choice((b"", TPID + struct.pack("!H", tci)))
        start = time.monotonic()
        while True:
            try:
                plug.send(there + here + tag + ETHERTYPE + ASK + body)
            except OSError:
                pass  # The queue is full.
            waited = time.monotonic()
            answer = None
            while answer is None and select.select([plug], [], [], 0.2)[0] and time.monotonic() - waited < 0.2:
                answer = receive(plug, ANSWER)
                # One to an earlier try may still come.
                if answer and answer[2][:4] != body[:4]:
                    answer = None
            if answer:
                break
            if time.monotonic() - start > 10:
                sys.exit(f"no answer to frame {number} of {length} bytes tagged {tag.hex()}")
        source, came, data = answer
        if source != there or came != tag or data[: len(body)] != body:
            sys.exit(f"frame {number} of {length} bytes, {tag.hex()}, came as {came.hex()} {data.hex()}")


def echo(interface):
    plug = packet_socket(interface)
    here = plug.getsockname()[4]
    while not is_over:
        if not select.select([plug], [], [], 0.1)[0]:
            continue
        asked = receive(plug, ASK)
        if asked:
            source, tag, body = asked
            try:
                plug.send(source + here + tag + ETHERTYPE + ANSWER + body)
            except OSError:
                pass  # It is asked again.


def errors():
    total = 0
    lines = [line.split() for line in open("/proc/net/snmp")]
    for names, values in zip(lines[::2], lines[1::2]):
        total += sum(int(value) for name, value in zip(names, values) if name == "InCsumErrors")
    for line in open("/proc/net/snmp6"):
        name, value = line.split()
        total += int(value) if name.endswith("InCsumErrors") else 0
    print(total)


signal.signal(signal.SIGTERM, end)
{"udp": udp, "frames": frames, "echo": echo, "errors": errors}[sys.argv[1]](*sys.argv[2:])
