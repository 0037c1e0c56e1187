/* libvdeplug.h: a program's connections to virtual Ethernet, by VDE's interface, version 1.
 *
 * Programs that are compiled with this header run with vdens's libvdeplug.so.2 and with VDE's own.
 */
#ifndef VDENS_LIBVDEPLUG_H
#define VDENS_LIBVDEPLUG_H

#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface, which vde_open passes on. */
#define LIBVDEPLUG_INTERFACE_VERSION 1

/* The most bytes behind a frame's header, and of a frame with header and VLAN tag. */
#define VDE_MAXMTU 9216
#define VDE_ETHBUFSIZE (VDE_MAXMTU + 14 + 4)

/* A connection. */
typedef struct vdeconn VDECONN;

/* Options for opening a VNL; vdens's plugins ignore those that do not concern them. */
struct vde_open_args {
    int port;    /* use this port of a switch; 0: any */
    char *group; /* set the group of the connection's sockets; NULL: the usual one */
    mode_t mode; /* set their permission bits; 0: the usual ones */
};

/* Opens a VNL, such as "ptp:///tmp/cable". NULL or an empty one means the default switch, and a
 * path without a scheme vde://PATH. `descr` is what switches show for the connection; it may be
 * NULL, and so may `args`. Returns NULL, with errno, if the VNL cannot be opened. */
VDECONN *vde_open_real(char *vnl, char *descr, int interface_version, struct vde_open_args *args);
#define vde_open(vnl, descr, args) \
    vde_open_real((vnl), (descr), LIBVDEPLUG_INTERFACE_VERSION, (args))

/* Receives one frame, and waits for it unless `flags` has MSG_DONTWAIT or the data descriptor is
 * O_NONBLOCK. A frame longer than `len` is cut. Returns the frame's length, or -1 with errno. With
 * VDE's library, 1 means that there is no frame after all. */
ssize_t vde_recv(VDECONN *conn, void *buf, size_t len, int flags);

/* Sends one frame. Returns its length, or -1 with errno. */
ssize_t vde_send(VDECONN *conn, const void *buf, size_t len, int flags);

/* The descriptor that poll(2) reports readable when vde_recv has a frame. */
int vde_datafd(VDECONN *conn);

/* The descriptor that poll(2) reports readable, at its end, when the connection is over. It is for
 * nothing else. VDE's library has none for some connections, and returns -1. */
int vde_ctlfd(VDECONN *conn);

/* Closes the connection. Returns 0, or -1 with errno. */
int vde_close(VDECONN *conn);

/* Frames on a byte stream, each behind its length in 2 bytes. */
typedef struct vdestream VDESTREAM;

/* The type of the error that a length in the stream is too large. */
#define PACKET_LENGTH_ERROR 1

/* Makes a stream that writes to `fdout`. It calls `frecv` with each frame that came in, and `ferr`,
 * which may be NULL, with a type of error and a format of printf(3) with its arguments. Both get
 * `opaque`. */
VDESTREAM *vdestream_open(void *opaque, int fdout,
                          ssize_t (*frecv)(void *opaque, void *buf, size_t count),
                          void (*ferr)(void *opaque, int type, char *format, ...));

/* Writes one frame. Returns the number of bytes written, 2 more than `len`, or -1 with errno. */
ssize_t vdestream_send(VDESTREAM *vdestream, const void *buf, size_t len);

/* Takes the next `len` bytes that were read from a stream. */
void vdestream_recv(VDESTREAM *vdestream, unsigned char *buf, size_t len);

/* Frees a stream. Does not close its output. */
void vdestream_close(VDESTREAM *vdestream);

#ifdef __cplusplus
}
#endif

#endif
