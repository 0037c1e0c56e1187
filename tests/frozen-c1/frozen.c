/* frozen://{VNL}: the link of another VNL, written on the door c1 of ABI 1 as it was frozen.
 *
 * Neither this file nor the header beside it ever changes: a host that refuses this plugin is
 * wrong.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vdens-plugin.h"

/* Another link, whose every call is passed on. */
static const struct vdens_link *inner(const void *link) { return link; }

static struct vdens_fds frozen_fds(const void *link)
{
    return inner(link)->calls->fds(inner(link)->link);
}

static int frozen_recv(void *link, struct vdens_batch *batch, struct vdens_error *error)
{
    return inner(link)->calls->recv(inner(link)->link, batch, error);
}

static int32_t frozen_send(void *link, struct vdens_batch *batch, uint32_t start,
                           struct vdens_error *error)
{
    return inner(link)->calls->send(inner(link)->link, batch, start, error);
}

static void frozen_other_side(void *link, struct vdens_state state)
{
    inner(link)->calls->other_side(inner(link)->link, state);
}

static struct vdens_state frozen_state(const void *link)
{
    return inner(link)->calls->state(inner(link)->link);
}

static size_t frozen_status(const void *link, char *text, size_t size)
{
    return inner(link)->calls->status(inner(link)->link, text, size);
}

static void frozen_close(void *link)
{
    inner(link)->calls->close(inner(link)->link);
    free(link);
}

static const struct vdens_link_calls calls = {
    .struct_size = sizeof(struct vdens_link_calls),
    .fds = frozen_fds,
    .recv = frozen_recv,
    .send = frozen_send,
    .other_side = frozen_other_side,
    .state = frozen_state,
    .status = frozen_status,
    .close = frozen_close,
};

static void info(const struct vdens_host *host, const char *message)
{
    if (host->calls->log_level() >= VDENS_LOG_INFO)
        host->calls->log(VDENS_LOG_INFO, "frozen", message);
}

/* Has the session store a descriptor, or finds the one that this process's predecessor stored. */
static int resume(const struct vdens_host *host, struct vdens_error *error)
{
    int fd = host->calls->kept(host->services);
    if (fd >= 0) {
        info(host, "frozen: goes on where another stopped");
    } else {
        fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return vdens_fail(error, VDENS_ERROR_OTHER, 0, "cannot open /dev/null");
        /* A host without sessions refuses, which is no failure of this link. */
        host->calls->keep(host->services, fd, NULL);
    }
    close(fd);
    return 0;
}

static int frozen_open(const struct vdens_request *request, struct vdens_link *link,
                       struct vdens_error *error)
{
    const struct vdens_host *host = &request->host;
    const char *argument = vdens_argument(request);
    size_t length = strlen(argument);
    if (length < 2 || argument[0] != '{' || argument[length - 1] != '}') {
        vdens_fail(error, VDENS_ERROR_USAGE, 0, "no VNL in braces");
        return vdens_hint(error, "write frozen://{VNL}");
    }
    struct vdens_port port;
    host->calls->port(host->services, &port);
    char message[128];
    snprintf(message, sizeof message, "frozen: %s has an MTU of %u", port.interface, port.mtu);
    info(host, message);
    if (resume(host, error) != 0)
        return -1;
    char *vnl = strndup(argument + 1, length - 2);
    struct vdens_link *it = malloc(sizeof *it);
    if (vnl == NULL || it == NULL
        || host->calls->open(host->services, vnl, it, error) != 0) {
        free(vnl);
        free(it);
        return -1;
    }
    free(vnl);
    link->link = it;
    link->calls = &calls;
    return 0;
}

const uint32_t vdens_plugin_abi = VDENS_ABI;
const struct vdens_plugin vdens_plugin_c1 = {
    .struct_size = sizeof(struct vdens_plugin),
    .scheme = "frozen",
    .description = "another link, through the door c1 as it was frozen",
    .version = "0.1.0",
    .capabilities = VDENS_CAP_NESTS,
    .open = frozen_open,
};
