/* vdens-plugin.h: ABI 1 of vdens in plain C, the door "c1".
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A transport for vdens is a shared library libvdens_SCHEME.so that exports two symbols:
 *
 *     vdens_plugin_abi   a uint32_t: VDENS_ABI
 *     vdens_plugin_c1    a struct vdens_plugin: what the plugin is, and its function `open`
 *
 * docs/plugin-author-c.md leads from nothing to a ping. docs/abi.md has the rules for versions.
 * This header is C11 and C++11, for Linux. It needs nothing but the C library's headers.
 *
 * RULES
 *
 * Versions. Door c1 is frozen: no member changes its place, its type or its meaning. A table (a
 * struct with the member struct_size) may grow at its end. The side that fills a table sets
 * struct_size to the size that it knows. The side that reads the table treats a member that does
 * not lie within struct_size as absent, and ignores what it does not know. Structs without
 * struct_size never grow. Unknown bits and codes are ignored.
 *
 * Numbers. Integers have the byte order of the machine. Lengths are in bytes.
 *
 * Strings are UTF-8 and end with a NUL byte. A string that is passed to a function is valid until
 * the function returns, unless it says otherwise. Text for the user is one line.
 *
 * Results. An `int` result is 0 for success and -1 for failure. On failure the callee fills in
 * *error, unless `error` is NULL. The host passes an error that is empty: code 0, empty texts.
 *
 * Threads. The host calls the functions of one link one at a time, not always on the same thread.
 * The host's own functions may be called on any thread, by several at a time.
 *
 * Blocking. No function of a link blocks. `open` may take some seconds.
 *
 * Memory. What the host passes is the host's, and is lent for the call. What a link allocates is
 * freed by its `close`. No memory is freed by the other side.
 *
 * Exceptions. No C++ exception and no longjmp leaves a function of the plugin.
 *
 * Processes. The host loads the library once and never unloads it. Descriptors must be opened
 * close-on-exec. The host may have loaded the library in several processes.
 */
#ifndef VDENS_PLUGIN_H
#define VDENS_PLUGIN_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The ABI version of this header. */
#define VDENS_ABI 1

/* Makes a symbol visible to the host, also with -fvisibility=hidden. The declarations below have
 * it, so a definition needs it no more. */
#define VDENS_EXPORT __attribute__((visibility("default")))

/* ---- Errors ------------------------------------------------------------------------------- */

/* Values of vdens_error.code. An unknown one counts as VDENS_ERROR_OTHER. */
#define VDENS_ERROR_OTHER 0u       /* none of the others */
#define VDENS_ERROR_USAGE 1u       /* the VNL or an option is malformed */
#define VDENS_ERROR_NOT_FOUND 2u   /* the thing named does not exist */
#define VDENS_ERROR_PERMISSION 3u  /* the caller may not use the thing named */
#define VDENS_ERROR_BUSY 4u        /* the thing named is in use */
#define VDENS_ERROR_CLOSED 5u      /* the far end is gone: the host opens the VNL again */
#define VDENS_ERROR_UNSUPPORTED 6u /* this machine, kernel or peer cannot do it */
#define VDENS_ERROR_PROTOCOL 7u    /* the far end violated the protocol */
#define VDENS_ERROR_PANIC 8u       /* the plugin's code is wrong */

/* Why a function failed. The caller owns it; the callee writes it. Longer text is cut. */
struct vdens_error {
    uint32_t code;      /* one of those above */
    int32_t errnum;     /* the operating system's error number (errno), 0 for none */
    char message[2048]; /* what failed, on what, and why; no full stop */
    char hint[1024];    /* what the user can do about it; empty for nothing */
};

/* ---- Frames ------------------------------------------------------------------------------- */

#define VDENS_BATCH_FRAMES 32   /* the most frames in a batch that vdens makes */
#define VDENS_VNET_HEADER 10    /* bytes of the virtio header in front of each frame */
#define VDENS_MIN_FRAME 14      /* the shortest frame: an Ethernet header */
#define VDENS_MAX_FRAME 65558   /* the longest: a 64 KiB packet, Ethernet header, two VLAN tags */
#define VDENS_LEGACY_FRAME 9234 /* the longest without offloads: MTU 9216, header, a VLAN tag */

/* Where an entry of a batch lies. An entry is a virtio header and, right behind it, an Ethernet
 * frame without preamble and checksum. The header is struct virtio_net_hdr of linux/virtio_net.h
 * in the machine's byte order. It is all zero for a complete frame; else it says what is left to
 * be done: a checksum, or segmentation. */
struct vdens_slot {
    uint32_t offset; /* bytes from the arena's start to the virtio header */
    uint32_t len;    /* bytes of virtio header and frame together */
};

/* A batch of frames, lent by the host for one call of recv or send. The host's members are not
 * to be changed; the others as recv and send say. */
struct vdens_batch {
    uint8_t *arena;           /* the host's: the first byte of the arena */
    uint32_t arena_len;       /* the host's: bytes of the arena, all initialised */
    uint32_t used;            /* bytes of the arena in use, from its start */
    struct vdens_slot *slots; /* the host's: the first slot */
    uint32_t slot_capacity;   /* the host's: number of slots */
    uint32_t len;             /* number of slots in use */
    uint64_t dropped;         /* frames lost since the host last read it; a link adds to it */
};

/* ---- An open link ------------------------------------------------------------------------- */

/* The descriptors of a link, for the host to poll. They stay the link's. */
struct vdens_fds {
    int32_t recv; /* readable while recv has something to do, and not otherwise */
    int32_t send; /* writable when send, which has not taken all, can go on; may be the same */
};

/* Bits of vdens_state.flags. */
#define VDENS_LINK_CARRIER 1u     /* the far end is there */
#define VDENS_LINK_SHARED 2u      /* the link serves others too, as a switch does: it never waits */
#define VDENS_LINK_PLUGGED 4u     /* the kernel carries the frames; none go through the link */
#define VDENS_LINK_WANTS_PANEL 8u /* the link may call plug or attach */

/* Bits of vdens_state.offloads: those of TUN_F_* in linux/if_tun.h. */
#define VDENS_OFFLOAD_CSUM 0x01u    /* checksums may be left to be completed */
#define VDENS_OFFLOAD_TSO4 0x02u    /* TCP super-frames over IPv4; needs CSUM */
#define VDENS_OFFLOAD_TSO6 0x04u    /* TCP super-frames over IPv6; needs CSUM */
#define VDENS_OFFLOAD_TSO_ECN 0x08u /* TCP super-frames with ECN; needs TSO4 or TSO6 */
#define VDENS_OFFLOAD_USO4 0x20u    /* UDP super-frames over IPv4; with USO6 */
#define VDENS_OFFLOAD_USO6 0x40u    /* UDP super-frames over IPv6; with USO4 */

/* The state of a link, or of the host's other side. */
struct vdens_state {
    uint32_t flags;
    uint32_t offloads; /* what may be left undone in the frames for send */
};

/* The functions of a link. Their first argument is vdens_link.link. `fds`, `recv`, `send` and
 * `close` are needed; the others may be NULL. A table is usually static and serves all links. */
struct vdens_link_calls {
    size_t struct_size; /* sizeof(struct vdens_link_calls) */

    /* Returns the descriptors to poll. The host asks before every wait, so they may change. */
    struct vdens_fds (*fds)(const void *link);

    /* Receives the frames that are waiting, as many as fit. Writes entries from arena + used on,
     * describes them in the slots from number len on, and raises used and len (vdens_room and
     * vdens_commit do). A link may do work of its own in this call and receive nothing.
     * -1: the link is broken; the host closes it, and may open the VNL again. */
    int (*recv)(void *link, struct vdens_batch *batch, struct vdens_error *error);

    /* Sends the entries from slot number `start` to len - 1 in order, and returns how many it
     * took. Changes nothing in the batch but `dropped`. If a queue is full, it leaves the frame,
     * and the host offers it again when fds().send is writable. A frame that can never be sent is
     * taken and added to `dropped`. -1: as for recv. */
    int32_t (*send)(void *link, struct vdens_batch *batch, uint32_t start,
                    struct vdens_error *error);

    /* May be NULL. Announces the state of the host's other side, at the start and after each
     * change: its carrier, and the offloads that received frames may use. */
    void (*other_side)(void *link, struct vdens_state state);

    /* May be NULL: always VDENS_LINK_CARRIER, no offloads. Returns the link's state. The host asks
     * after every call. */
    struct vdens_state (*state)(const void *link);

    /* May be NULL: nothing to report. Writes a report for the user, a JSON object, as snprintf
     * does: at most `size` bytes with the NUL, and returns the bytes of the whole text without
     * it. Known members, all optional: "peer" {"description", "uid", "pid"}, "tier" ("kernel",
     * "taps", "super-frames", "segmented"), "reason" (why there is no better tier), "max_mtu",
     * "switch" {"ports" [{"number", "client", "tier", "received", "sent", "dropped"}], "fdb"
     * [{"mac", "vlan", "port", "age"}]}, "extra" {name: text}. The host ignores others. */
    size_t (*status)(const void *link, char *text, size_t size);

    /* Closes the link, removes what it made, and frees it. It is called once, last. */
    void (*close)(void *link);
};

/* An open link. Who has it calls calls->close(link) once. */
struct vdens_link {
    void *link;                           /* the link's own, passed to its functions */
    const struct vdens_link_calls *calls; /* valid until close returns */
};

/* ---- The host ----------------------------------------------------------------------------- */

/* Levels of the log. */
#define VDENS_LOG_ERROR 1u
#define VDENS_LOG_WARN 2u
#define VDENS_LOG_INFO 3u
#define VDENS_LOG_DEBUG 4u
#define VDENS_LOG_TRACE 5u

/* The host's side of the link. */
struct vdens_port {
    uint32_t mtu;       /* the interface's MTU at the start; 0 if there is no interface */
    uint64_t panel;     /* the panel that the interface can be plugged on; 0 for none */
    char place[32];     /* the interface's place there: a secret of the user's; may be empty */
    char interface[16]; /* the interface's name; empty if there is no interface */
};

/* A bridge on the panel. */
struct vdens_hub {
    int32_t tap;    /* a tap that is a port of the bridge: the receiver owns the descriptor */
    uint64_t panel; /* the panel */
    char place[32]; /* the bridge's place there */
    char name[16];  /* the tap's name */
};

/* The host's functions. Their first argument is vdens_host.services. */
struct vdens_host_calls {
    size_t struct_size;

    /* Logs a record of one line. `target` says from what it comes, usually the scheme. */
    void (*log)(uint32_t level, const char *target, const char *message);

    /* Returns the highest level that the host shows; 0 for none. */
    uint32_t (*log_level)(void);

    /* Opens another VNL, at most eight in each other. The caller owns *link, polls its
     * descriptors or hands them on, and closes it. All functions of the link are there. */
    int (*open)(const void *services, const char *vnl, struct vdens_link *link,
                struct vdens_error *error);

    /* Describes the host's side of the link. */
    void (*port)(const void *services, struct vdens_port *port);

    /* Plugs the interface into a cable to the interface at the place `peer` on the same panel.
     * The peer must do the same. From then on the kernel carries the frames. While the peer is
     * there, the link reports VDENS_LINK_PLUGGED; when it reports another state, the host unplugs
     * the interface. Not possible before the first call of other_side. */
    int (*plug)(const void *services, const char *peer, struct vdens_error *error);

    /* Plugs the interface into a bridge: its panel, and its place there. Otherwise as plug. */
    int (*attach)(const void *services, uint64_t panel, const char *place,
                  struct vdens_error *error);

    /* Makes a bridge that forgets a station after so many milliseconds of silence; 0: it learns
     * no stations. Takes some milliseconds. Not possible before the link is open. */
    int (*hub)(const void *services, uint64_t expiry, struct vdens_hub *hub,
               struct vdens_error *error);

    /* Stores a copy of a descriptor in the session, in place of the one stored before; negative:
     * stores none. When the process that serves the link dies, its successor gets it by kept. */
    int (*keep)(const void *services, int fd, struct vdens_error *error);

    /* Returns the descriptor that the last process stored, at the first call; else -1. The caller
     * owns it. */
    int (*kept)(const void *services);
};

/* The host. It may be copied; it is valid for the life of the process. */
struct vdens_host {
    const void *services;                 /* the host's own, passed to its functions */
    const struct vdens_host_calls *calls; /* all of those above are there */
};

/* ---- Bridges on the panel that know VLANs ------------------------------------------------- */

/* Kinds of such bridges. */
#define VDENS_BRIDGE_FILTERING 1u /* filters VLANs; a port is in none until set_vlans */
#define VDENS_BRIDGE_UNTAGGED 2u  /* its ports drop frames whose 802.1Q tag names a VLAN */

/* The VLANs that a port of a filtering bridge is in, each a number from 1 to 4094. */
struct vdens_port_vlans {
    uint16_t untagged;   /* the VLAN whose frames have no tag at the port; 0 for none */
    uint8_t tagged[512]; /* those whose frames have one: VLAN n is bit n % 8 of byte n / 8 */
};

/* The host's functions for them. Their first argument is vdens_host.services of any request. The
 * table is valid for the life of the process. Functions may be missing. */
struct vdens_panel_calls {
    size_t struct_size;

    /* Makes a bridge of this kind. Otherwise as hub. VDENS_ERROR_UNSUPPORTED: the kernel has no
     * such bridges. */
    int (*vlan_bridge)(const void *services, uint64_t expiry, uint32_t kind,
                       struct vdens_hub *hub, struct vdens_error *error);

    /* Puts a port of a filtering bridge in these VLANs, and takes it out of all others. The bridge
     * is named by its panel and its place, the port by its interface's place; NULL: the bridge's
     * tap. */
    int (*set_vlans)(const void *services, uint64_t panel, const char *bridge, const char *port,
                     const struct vdens_port_vlans *vlans, struct vdens_error *error);
};

/* ---- The plugin --------------------------------------------------------------------------- */

/* What is to be opened. It and its strings are lent for the call of open. */
struct vdens_request {
    size_t struct_size;
    const char *vnl;         /* the whole VNL, scheme://argument */
    const char *description; /* what the far end may show for this link; may be empty */
    const char *group;       /* the group of the sockets that the link makes; empty for none */
    int64_t port;            /* the port of a switch to plug into; -1 for any */
    int64_t mode;            /* the permission bits of sockets that the link makes; -1 for none */
    struct vdens_host host;  /* the host's services */
};

/* Bits of vdens_plugin.capabilities, for listings and for `vdectl plugin check`. */
#define VDENS_CAP_NESTS 1u        /* its VNLs have another VNL in braces */
#define VDENS_CAP_SUPER_FRAMES 2u /* its links may take super-frames */
#define VDENS_CAP_PANEL 4u        /* the kernel may carry its frames */
#define VDENS_CAP_SHARED 8u       /* its links serve others beside this host */
#define VDENS_CAP_ONE_END 16u     /* what goes into one link does not come out of another */
#define VDENS_CAP_STANDS_IN 32u   /* a link that it opens may be plugged in this one's place */
#define VDENS_CAP_CONFINED 64u    /* its links may be confined to vdens_plugin_needs */

/* The plugin. Its strings are valid for the life of the process. */
struct vdens_plugin {
    size_t struct_size;      /* sizeof(struct vdens_plugin) */
    const char *scheme;      /* of a-z, 0-9 and _; the file is libvdens_SCHEME.so */
    const char *description; /* one line for the user */
    const char *version;     /* the plugin's own version */
    uint64_t capabilities;   /* bits of those above */

    /* Opens a link: fills in *link and returns 0, or *error and returns -1. */
    int (*open)(const struct vdens_request *request, struct vdens_link *link,
                struct vdens_error *error);
};

/* The symbols that the plugin defines. They are visible by these declarations. */
extern VDENS_EXPORT const uint32_t vdens_plugin_abi;
extern VDENS_EXPORT const struct vdens_plugin vdens_plugin_c1;

/* May be left out: what the links need beyond what a confined plugin is given, in words that
 * docs/sandbox.md lists. */
extern VDENS_EXPORT const char vdens_plugin_needs[];

/* May be left out: takes the host's functions for bridges that know VLANs. The host calls it once,
 * before the first open. A host without such functions does not call it. */
VDENS_EXPORT void vdens_plugin_panel(const struct vdens_panel_calls *calls);

/* ---- Conveniences: they are compiled into the plugin and are no part of the contract. ------- */

#define VDENS_UNUSED __attribute__((unused))

/* Fills in *error as printf does, and returns -1. */
VDENS_UNUSED __attribute__((format(printf, 4, 5))) static inline int
vdens_fail(struct vdens_error *error, uint32_t code, int errnum, const char *format, ...)
{
    if (error != NULL) {
        va_list args;
        va_start(args, format);
        error->code = code;
        error->errnum = errnum;
        error->hint[0] = '\0';
        if (vsnprintf(error->message, sizeof error->message, format, args) < 0)
            error->message[0] = '\0';
        va_end(args);
    }
    return -1;
}

/* Adds a hint to *error as printf does, and returns -1. */
VDENS_UNUSED __attribute__((format(printf, 2, 3))) static inline int
vdens_hint(struct vdens_error *error, const char *format, ...)
{
    if (error != NULL) {
        va_list args;
        va_start(args, format);
        if (vsnprintf(error->hint, sizeof error->hint, format, args) < 0)
            error->hint[0] = '\0';
        va_end(args);
    }
    return -1;
}

/* The request's VNL without `scheme://`. */
VDENS_UNUSED static inline const char *vdens_argument(const struct vdens_request *request)
{
    const char *colon = strstr(request->vnl, "://");
    return colon != NULL ? colon + 3 : request->vnl;
}

/* For recv: where the next frame can be written, after a virtio header of zeros; NULL if there is
 * no room for a frame of max_frame bytes. */
VDENS_UNUSED static inline uint8_t *vdens_room(struct vdens_batch *batch, size_t max_frame)
{
    size_t left = batch->used < batch->arena_len ? batch->arena_len - batch->used : 0;
    if (batch->len >= batch->slot_capacity || left < VDENS_VNET_HEADER
        || left - VDENS_VNET_HEADER < max_frame)
        return NULL;
    memset(batch->arena + batch->used, 0, VDENS_VNET_HEADER);
    return batch->arena + batch->used + VDENS_VNET_HEADER;
}

/* For recv: makes the bytes at vdens_room the next frame. Drops and counts one that is too short.
 * `len` is no more than the room that was asked for. */
VDENS_UNUSED static inline void vdens_commit(struct vdens_batch *batch, size_t len)
{
    if (len < VDENS_MIN_FRAME) {
        batch->dropped++;
        return;
    }
    batch->slots[batch->len].offset = batch->used;
    batch->slots[batch->len].len = (uint32_t)(VDENS_VNET_HEADER + len);
    batch->used += (uint32_t)(VDENS_VNET_HEADER + len);
    batch->len++;
}

/* For send: frame number `index` of the batch and its length. Its virtio header is the
 * VDENS_VNET_HEADER bytes in front of it. */
VDENS_UNUSED static inline const uint8_t *vdens_frame(const struct vdens_batch *batch,
                                                      uint32_t index, size_t *len)
{
    *len = batch->slots[index].len - VDENS_VNET_HEADER;
    return batch->arena + batch->slots[index].offset + VDENS_VNET_HEADER;
}

#ifdef __cplusplus
}
#endif

#endif
