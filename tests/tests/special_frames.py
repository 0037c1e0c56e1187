"""Control frames and long frames: `frames.py send|receive INTERFACE`.

The receiver prints which frames arrived as they were sent, and which arrived changed.

The control frames are those of IEEE 802.1D (BPDU), 802.1w (RSTP), 802.3 annexes 31B and 31D (pause,
priority pause), 802.1AX (LACP) and 802.1AB (LLDP). The long ones carry IEEE's second local
experimental ethertype, 0x88B6.
"""

import socket, struct, sys, time

SOURCE = bytes.fromhex('02ee00000001')


def group(last):
    return bytes.fromhex('0180c20000') + bytes([last])


def padded(frame):
    return frame + bytes(max(0, 60 - len(frame)))


def control(last, rest):
    return padded(group(last) + SOURCE + rest)


# LLC's length is that of what follows it: three bytes of header, and the BPDU.
BPDU = bytes.fromhex('0026424203') + bytes.fromhex('0000000000') + bytes.fromhex('8000020000000001') * 2 + bytes(14)
RSTP = bytes.fromhex('0027424203') + bytes.fromhex('000002023c') + bytes.fromhex('8000020000000001') * 2 + bytes(15)

frames = {
    'bpdu': control(0, BPDU),
    'rstp': control(0, RSTP),
    'pvst': padded(bytes.fromhex('01000ccccccd') + SOURCE + bytes.fromhex('0032aaaa0300000c010b') + bytes(40)),
    'pause': control(1, bytes.fromhex('88080001ffff')),
    'unpause': control(1, bytes.fromhex('880800010000')),
    'priority-pause': control(1, bytes.fromhex('8808010100ff') + b'\xff\xff' * 8),
    'pause-to-one': padded(bytes.fromhex('02ee00000002') + SOURCE + bytes.fromhex('88080001ffff')),
    'lacp': control(2, bytes.fromhex('88090101') + bytes(106)),
    'lldp': control(14, bytes.fromhex('88cc') + bytes(46)),
}
for length in (60, 1514, 1518, 9014, 9230, 9231, 9234, 9235, 20014, 65014, 65535):
    number = bytes(at * length & 255 for at in range(length - 14))
    frames[f'long-{length}'] = b'\xff' * 6 + SOURCE + b'\x88\xb6' + number
tag = bytes.fromhex('8100 0007')
frames['tagged-9234'] = b'\xff' * 6 + SOURCE + tag + b'\x88\xb6' + bytes(9234 - 18)
end = padded(b'\xff' * 6 + SOURCE + b'\x88\xb7end')

what, interface = sys.argv[1:3]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((interface, 0))
if what == 'send':
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
    for name, frame in frames.items():
        try:
            s.send(frame)
        except OSError as error:
            print('not sent:', name, error.strerror)
    # Whatever else is lost, this is not.
    for _ in range(20):
        time.sleep(0.05)
        s.send(end)
else:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    print('ready', flush=True)
    s.settimeout(30)
    arrived, strange = [], []
    known = {frame: name for name, frame in frames.items()}
    while True:
        # The kernel tells of a tag beside the frame.
        frame, ancillary, _, address = s.recvmsg(1 << 17, 100)
        if address[2] == socket.PACKET_OUTGOING or frame[6:12] != SOURCE:
            continue
        if frame == end:
            break
        name = known.get(frame)
        if name is None and len(frame) == 9230 and frame[12:14] == b'\x88\xb6':
            name = 'tagged-9234'
        (arrived if name else strange).append(name or f'{len(frame)} bytes {frame[:20].hex()}')
    print('arrived:', *arrived)
    print('changed:', *strange)
