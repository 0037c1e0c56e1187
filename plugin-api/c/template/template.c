/* template://PORT: a cable between two processes of this machine, made of UDP datagrams on the
 * loopback interface.
 *
 * The first end binds the port PORT, the second PORT + 1, and each sends to the other's. UDP does
 * not reveal whether the far end is there, so the link always has carrier. What is sent while the
 * far end is not there is lost.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vdens-plugin.h"

/* One end of the cable. */
struct end {
    int socket;
};

static struct vdens_fds end_fds(const void *link)
{
    const struct end *end = link;
    return (struct vdens_fds){.recv = end->socket, .send = end->socket};
}

static int end_recv(void *link, struct vdens_batch *batch, struct vdens_error *error)
{
    const struct end *end = link;
    uint8_t *room;
    while ((room = vdens_room(batch, VDENS_LEGACY_FRAME)) != NULL) {
        ssize_t len = recv(end->socket, room, VDENS_LEGACY_FRAME, MSG_TRUNC);
        if (len > VDENS_LEGACY_FRAME)
            batch->dropped++;
        else if (len >= 0)
            vdens_commit(batch, (size_t)len);
        else if (errno == EAGAIN)
            break;
        else if (errno != ECONNREFUSED) /* The far end was not there for an earlier frame. */
            return vdens_fail(error, VDENS_ERROR_OTHER, errno, "cannot receive: %s",
                              strerror(errno));
    }
    return 0;
}

static int32_t end_send(void *link, struct vdens_batch *batch, uint32_t start,
                        struct vdens_error *error)
{
    const struct end *end = link;
    (void)error;
    for (uint32_t index = start; index < batch->len; index++) {
        size_t len;
        const uint8_t *frame = vdens_frame(batch, index, &len);
        if (send(end->socket, frame, len, 0) >= 0)
            continue;
        if (errno == EAGAIN)
            return (int32_t)(index - start);
        /* The far end is not there, or the frame is too long for UDP. */
        batch->dropped++;
    }
    return (int32_t)(batch->len - start);
}

static void end_close(void *link)
{
    struct end *end = link;
    close(end->socket);
    free(end);
}

static const struct vdens_link_calls end_calls = {
    .struct_size = sizeof(struct vdens_link_calls),
    .fds = end_fds,
    .recv = end_recv,
    .send = end_send,
    .close = end_close,
};

/* The address of a port on the loopback interface. */
static struct sockaddr_in loopback(unsigned long port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
}

/* Binds the port or the next, and connects to the other; -1 and errno on failure. */
static int join(int fd, unsigned long port)
{
    struct sockaddr_in near = loopback(port), far = loopback(port + 1);
    if (bind(fd, (const struct sockaddr *)&near, sizeof near) == 0)
        return connect(fd, (const struct sockaddr *)&far, sizeof far);
    if (errno != EADDRINUSE || bind(fd, (const struct sockaddr *)&far, sizeof far) != 0)
        return -1;
    return connect(fd, (const struct sockaddr *)&near, sizeof near);
}

static int open_end(const struct vdens_request *request, struct vdens_link *link,
                    struct vdens_error *error)
{
    const char *word = vdens_argument(request);
    char *rest;
    unsigned long port = strtoul(word, &rest, 10);
    if (*word < '0' || *word > '9' || *rest != '\0' || port < 1 || port > 65534) {
        vdens_fail(error, VDENS_ERROR_USAGE, 0, "'%s' is no port", word);
        return vdens_hint(error, "write template://PORT, from 1 to 65534");
    }
    struct end *end = malloc(sizeof *end);
    if (end == NULL)
        return vdens_fail(error, VDENS_ERROR_OTHER, ENOMEM, "there is no memory");
    end->socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (end->socket < 0 || join(end->socket, port) != 0) {
        vdens_fail(error, errno == EADDRINUSE ? VDENS_ERROR_BUSY : VDENS_ERROR_OTHER, errno,
                   "cannot open UDP port %lu or the next: %s", port, strerror(errno));
        if (end->socket >= 0)
            close(end->socket);
        free(end);
        return vdens_hint(error, "take another one");
    }
    link->link = end;
    link->calls = &end_calls;
    return 0;
}

const uint32_t vdens_plugin_abi = VDENS_ABI;
const struct vdens_plugin vdens_plugin_c1 = {
    .struct_size = sizeof(struct vdens_plugin),
    .scheme = "template",
    .description = "a cable of UDP datagrams between two processes of this machine",
    .version = "0.1.0",
    .open = open_end,
};
