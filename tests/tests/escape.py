"""Attempts of a command to leave its namespace: `escape.py TRY TARGET...`.

Each attempt prints a line "ATTEMPT OUTCOME"; the outcome is `ok` or the error's name. TARGET is a
process id, or `child`: a process in namespaces below this command's own, where every attempt is
allowed. It shows that the attempts are right.
"""

import ctypes, errno, os, signal, socket, struct, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
PIDFD_OPEN, PIDFD_GETFD = 434, 438
NEWNET, NEWUSER, NEWNS, NEWUTS = 0x40000000, 0x10000000, 0x00020000, 0x04000000


def attempt(name, action):
    try:
        action()
        outcome = 'ok'
    except OSError as error:
        outcome = errno.errorcode[error.errno]
    print(name, outcome, flush=True)


def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), '')
    return result


# Processes.

def ptrace(pid):
    call(libc.ptrace(16, pid, None, None))  # PTRACE_ATTACH
    os.waitpid(pid, 0x40000000)  # __WALL
    call(libc.ptrace(17, pid, None, None))  # PTRACE_DETACH


def getfd(pid):
    pidfd = call(libc.syscall(PIDFD_OPEN, pid, 0))
    os.close(call(libc.syscall(PIDFD_GETFD, pidfd, 0, 0)))


def read_memory(pid):
    here = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(here), 8)
    # Nothing is there: whoever may look is told so.
    remote = (ctypes.c_void_p * 2)(8, 8)
    call(libc.process_vm_readv(pid, local, 1, remote, 1, 0))


def open_file(pid, name):
    os.close(os.open(f'/proc/{pid}/{name}', os.O_RDONLY))


def write_map(pid):
    os.close(os.open(f'/proc/{pid}/mem', os.O_RDWR))


def join(pid, kind):
    # In a child: the attempt must not succeed here. A user namespace needs a process with one
    # thread, which it has.
    child = os.fork()
    if child == 0:
        pidfd = libc.syscall(PIDFD_OPEN, pid, 0)
        os._exit(0 if libc.setns(pidfd, kind) == 0 else ctypes.get_errno())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(status, '')


def processes(targets):
    for pid in targets:
        attempt('ptrace', lambda: ptrace(pid))
        attempt('pidfd_getfd', lambda: getfd(pid))
        attempt('process_vm_readv', lambda: read_memory(pid))
        attempt('mem', lambda: write_map(pid))
        for name in ('environ', 'fd/0', 'ns/net', 'ns/user', 'ns/mnt', 'root/etc/passwd', 'maps'):
            attempt(name, lambda: open_file(pid, name))
        attempt('setns-user', lambda: join(pid, NEWUSER))
        attempt('setns-net', lambda: join(pid, NEWNET))
        for name, kind in (('net', NEWNET), ('uts', NEWUTS), ('mnt', NEWNS)):
            attempt(f'setns-user-{name}', lambda: join(pid, NEWUSER | kind))


# The network, by rtnetlink(7).

NEWLINK, DELLINK, GETLINK, SETLINK, GETADDR, NEWNSID, GETNSID = 16, 17, 18, 19, 22, 88, 90
REQUEST, ACK, CREATE, EXCL, DUMP = 1, 4, 0x400, 0x200, 0x300
LINK, IFNAME, LINKINFO, NET_NS_PID, LINK_NETNSID, TARGET_NETNSID = 5, 3, 18, 19, 37, 46


def attr(kind, value):
    if isinstance(value, int):
        value = struct.pack('=I', value)
    elif isinstance(value, str):
        value = value.encode() + b'\0'
    return struct.pack('=HH', 4 + len(value), kind) + value + bytes(-len(value) % 4)


def netlink(kind, flags, body):
    """Sends a request; the messages that answer it."""
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    s.settimeout(10)
    s.setsockopt(270, 12, 1)  # NETLINK_GET_STRICT_CHK: the filter of a dump is not ignored
    s.send(struct.pack('=IHHII', 16 + len(body), kind, REQUEST | ACK | flags, 1, 0) + body)
    messages = []
    while True:
        data = s.recv(1 << 17)
        while data:
            length, kind, flags = struct.unpack_from('=IHH', data)
            if kind in (2, 3):  # NLMSG_ERROR, NLMSG_DONE
                code = struct.unpack_from('=i', data, 16)[0]
                if code:
                    raise OSError(-code, '')
                return messages
            messages.append((kind, data[16:length]))
            data = data[length + 3 & ~3:]


def ifinfo(index=0, attrs=b'', flags=0, change=0):
    return struct.pack('=BxHiII', 0, 0, index, flags, change) + attrs


def attributes(data):
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from('=HH', data)
        found[kind & 0x3fff] = data[4:length]
        data = data[length + 3 & ~3:]
    return found


def linkinfo(kind, data=b''):
    return attr(LINKINFO, attr(1, kind) + (attr(2, data) if data else b''))


def new_link(attrs):
    netlink(NEWLINK, CREATE | EXCL, ifinfo(attrs=attrs))


def remove(name):
    try:
        netlink(DELLINK, 0, ifinfo(attrs=attr(IFNAME, name)))
    except OSError:
        pass


def into(pid, nsid):
    """Tries to reach the network namespace with the number `nsid`, and by `pid` if it has one."""
    ways = [('nsid', attr(TARGET_NETNSID, nsid))]
    if pid is not None:
        ways.insert(0, ('pid', attr(NET_NS_PID, pid)))
    for how, where in ways:
        if how == 'pid':
            # One end there. The kernel takes no number for a peer (rtnl_get_peer_net in
            # net/core/rtnetlink.c).
            peer = attr(1, ifinfo(attrs=attr(IFNAME, 'esc-peer') + where))
            attempt('veth-peer-pid', lambda: new_link(attr(IFNAME, 'esc-veth') + linkinfo('veth', peer)))
            remove('esc-veth')
        # Both ends there.
        peer = attr(1, ifinfo(attrs=attr(IFNAME, f'esc-q-{how}')))
        pair = attr(IFNAME, f'esc-p-{how}') + linkinfo('veth', peer)
        attempt(f'make-{how}', lambda: new_link(pair + where))
        peer = attr(1, ifinfo(attrs=attr(IFNAME, 'esc-other')))
        new_link(attr(IFNAME, 'esc-mine') + linkinfo('veth', peer))
        index = socket.if_nametoindex('esc-mine')
        attempt(f'move-{how}', lambda: netlink(SETLINK, 0, ifinfo(index, where)))
        remove('esc-other')
        if how == 'pid':
            continue
        # Loopback is 1 everywhere.
        attempt('list', lambda: netlink(GETLINK, DUMP, ifinfo(attrs=where)))
        attempt('look', lambda: netlink(GETLINK, 0, ifinfo(1, where)))
        attempt('addresses', lambda: netlink(GETADDR, DUMP, struct.pack('=BBBBI', 0, 0, 0, 0, 0) + attr(10, nsid)))
        above = attr(LINK, 1) + attr(LINK_NETNSID, nsid) + attr(IFNAME, 'esc-above')
        # An interface here on top of one there. A dummy is on top of nothing: who may ask is told
        # that.
        attempt('on-top', lambda: new_link(above + linkinfo('dummy')))
        remove('esc-above')
        attempt('delete', lambda: netlink(DELLINK, 0, ifinfo(attrs=where + attr(IFNAME, 'esc-p-nsid'))))


def known(pid, nsid):
    """Gives a process's network namespace a number here. That needs no right over it."""
    body = bytes(4) + attr(1, nsid) + attr(2, pid)
    try:
        netlink(NEWNSID, 0, body)
        return nsid
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    answer = netlink(GETNSID, 0, bytes(4) + attr(2, pid))[0][1]
    return struct.unpack('=i', attributes(answer[4:])[1])[0]


def network(targets):
    for number, pid in enumerate(targets):
        into(pid, known(pid, 100 + number))


def panel(interface):
    """The namespace that the far end of the interface is in; the kernel tells its number."""
    answer = netlink(GETLINK, 0, ifinfo(attrs=attr(IFNAME, interface)))[0][1]
    found = attributes(answer[16:])
    into(None, struct.unpack('=i', found[LINK_NETNSID])[0])
    far = struct.unpack('=I', found[LINK])[0]
    nsid = attr(TARGET_NETNSID, struct.unpack('=i', found[LINK_NETNSID])[0])
    attempt('delete-far-end', lambda: netlink(DELLINK, 0, ifinfo(far, nsid)))
    attempt('move-interface', lambda: netlink(SETLINK, 0, ifinfo(socket.if_nametoindex(interface), nsid)))


def monitor(child):
    """Receives link events of all namespaces with a number here, up to one of the child's."""
    known(child, 200)
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    s.bind((0, 1))  # RTMGRP_LINK
    s.setsockopt(270, 8, 1)  # NETLINK_LISTEN_ALL_NSID
    print('ready', flush=True)
    sys.stdin.read()
    peer = attr(1, ifinfo(attrs=attr(IFNAME, 'esc-end')))
    new_link(attr(IFNAME, 'esc-last') + attr(NET_NS_PID, child) + linkinfo('veth', peer))
    names = set()
    while 'esc-last' not in names:
        data, ancillary, _, _ = s.recvmsg(1 << 17, 100)
        while data:
            length = struct.unpack_from('=I', data)[0]
            name = attributes(data[32:length]).get(IFNAME, b'\0')[:-1].decode()
            names.add(name)
            data = data[length + 3 & ~3:]
    print('heard', *sorted(names))


# Settings of the kernel.

def sysctls():
    """Which files below /proc/sys can be opened for writing: opening changes nothing."""
    counts, outside = {}, []
    for directory, _, files in os.walk('/proc/sys'):
        for file in files:
            path = os.path.join(directory, file)
            top = path.split('/')[3]
            count = counts.setdefault(top, [0, 0])
            count[1] += 1
            try:
                os.close(os.open(path, os.O_WRONLY))
            except OSError:
                continue
            count[0] += 1
            if top != 'net':
                outside.append(path)
    for top, (writable, all) in sorted(counts.items()):
        print(f'{top}: {writable} of {all}')
    print('outside:', *outside)


def main():
    what, words = sys.argv[1], sys.argv[2:]
    children = []

    def target(word):
        if word != 'child':
            return int(word)
        # It has namespaces of each kind, and says so when it has them.
        command = ['unshare', '-Urnm', '--uts', 'sh', '-c', 'echo; exec sleep 1000']
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        child.stdout.readline()
        children.append(child)
        return child.pid

    try:
        if what == 'panel':
            panel(words[0])
        elif what == 'monitor':
            monitor(target('child'))
        elif what == 'sysctls':
            sysctls()
        else:
            {'processes': processes, 'network': network}[what]([target(word) for word in words])
    finally:
        for child in children:
            child.kill()
            child.wait()


main()
