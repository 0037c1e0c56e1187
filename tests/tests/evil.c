/* evil://: a C plugin for libvdeplug that sends every frame back. Frames of the ethertype 0x88b5
 * are orders: S crash while receiving, E call exit while receiving, B block while sending, F fail from
 * now on. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct vdeconn {
    void *library, *module;
    int near, far, fails;
};

static struct vdeconn *evil_open(char *vnl, char *description, int version, void *args)
{
    struct vdeconn *conn = calloc(1, sizeof *conn);
    int pair[2];
    (void)description, (void)version, (void)args;
    if (strcmp(vnl, "slow") == 0)
        pause();
    if (conn == NULL || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0)
        return NULL;
    conn->near = pair[0];
    conn->far = pair[1];
    return conn;
}

static char order(const unsigned char *frame, ssize_t length)
{
    return length > 14 && frame[12] == 0x88 && frame[13] == 0xb5 ? frame[14] : 0;
}

static ssize_t evil_recv(struct vdeconn *conn, void *frame, size_t size, int flags)
{
    if (conn->fails) {
        errno = EIO;
        return -1;
    }
    ssize_t length = recv(conn->near, frame, size, flags);
    switch (order(frame, length)) {
    case 'S':
        *(volatile int *)0 = 0;
        break;
    case 'E':
        exit(3);
    case 'F':
        conn->fails = 1;
        send(conn->far, "", 1, 0);
        errno = EIO;
        return -1;
    }
    return length;
}

static ssize_t evil_send(struct vdeconn *conn, const void *frame, size_t length, int flags)
{
    while (order(frame, length) == 'B')
        pause();
    return send(conn->far, frame, length, flags | MSG_DONTWAIT);
}

static int evil_datafd(struct vdeconn *conn)
{
    return conn->near;
}

static int evil_ctlfd(struct vdeconn *conn)
{
    (void)conn;
    return -1;
}

static int evil_close(struct vdeconn *conn)
{
    close(conn->near);
    close(conn->far);
    free(conn);
    return 0;
}

struct {
    int flags;
    void *open, *recv, *send, *datafd, *ctlfd, *close;
} vdeplug_ops = {0, evil_open, evil_recv, evil_send, evil_datafd, evil_ctlfd, evil_close};
