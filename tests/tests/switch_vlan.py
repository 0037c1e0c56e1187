"""Frames on the wire: `switch_vlan.py INTERFACE send NAME | tags | sniff | fill`, or `ask DIR JSON`.

`send` broadcasts a frame without a tag, and one in each of the VLANs 10, 20 and 30, with NAME and
the VLAN in them. `tags` broadcasts frames with other tags, and one without. `sniff` prints such
frames as they come, and the outermost tag that they have: the kernel tells of it beside the frame
(packet(7), PACKET_AUXDATA). `fill` sends frames from 200,000
addresses, each to itself. `ask` asks the switch of a directory, and prints the answer. The
ethertype is IEEE's first local experimental one.
"""

import glob, json, os, socket, struct, sys

TYPE = b'\x88\xb5'


def packets():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    s.bind((sys.argv[1], 0))
    return s


def send(name):
    s = packets()
    source = bytes.fromhex('020000') + os.urandom(3)
    for vlan in (0, 10, 20, 30):
        tag = struct.pack('!HH', 0x8100, vlan) if vlan else b''
        text = f'{name}/{vlan}'.encode()
        s.send(b'\xff' * 6 + source + tag + TYPE + text.ljust(60, b'\0'))


def tags():
    s = packets()
    kinds = {'priority': '81006000', 'provider': '88a80014', 'provider-vlan': '88a800148100000a',
             'double': '8100000a81000014', 'double-priority': '810060008100000a', 'none': ''}
    for name, tag in kinds.items():
        s.send(b'\xff' * 6 + bytes.fromhex('020000000001' + tag) + TYPE + name.encode().ljust(60, b'\0'))


def sniff():
    s = packets()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    s.setsockopt(263, 8, 1)
    print('ready', flush=True)
    while True:
        frame, control, _, address = s.recvmsg(2000, 100)
        rest = frame[12:]
        while rest[:2] in (b'\x81\0', b'\x88\xa8'):
            rest = rest[4:]
        if address[2] == socket.PACKET_OUTGOING or rest[:2] != TYPE:
            continue
        status, _, _, _, _, tci, _ = struct.unpack('IIIHHHH', control[0][2][:20])
        tag = tci & 0xfff if status & 16 else 0
        print(rest[2:].rstrip(b'\0').decode(), tag, flush=True)


def fill():
    s = packets()
    for number in range(200_000):
        mac = b'\x02\x09' + struct.pack('!I', number)
        s.send(mac + mac + TYPE + bytes(46))


def ask(directory, request):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.settimeout(20)
    own = f"{os.environ['HOME']}/ask-{os.getpid()}"
    s.bind(own)
    try:
        for path in glob.glob(os.environ['XDG_RUNTIME_DIR'] + '/vdens-switch-*/control'):
            def exchange(text):
                s.sendto(text.encode(), path)
                return s.recv(1 << 20).decode()
            if json.loads(exchange('"show"'))['switch']['directory'] == directory:
                return print(exchange(request))
        sys.exit('no such switch')
    finally:
        os.unlink(own)


if sys.argv[1] == 'ask':
    ask(*sys.argv[2:])
else:
    {'send': send, 'tags': tags, 'sniff': sniff, 'fill': fill}[sys.argv[2]](*sys.argv[3:])
