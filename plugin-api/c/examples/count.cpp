// count://{VNL}: the link of another VNL, whose frames it counts.
//
// An example in C++ of what a transport can ask of its host: another VNL, the log, the name of the
// interface, and a descriptor that outlives the process. `vdectl status` shows the counts. They are
// in a file in memory, which the session stores, so that they go on when another process takes the
// link over.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vdens-plugin.h"

namespace {

// What is counted, in the shared file.
struct Counts {
    uint64_t received;
    uint64_t sent;
};

class Failure : public std::exception {
public:
    explicit Failure(vdens_error error) : error(error) {}
    const vdens_error error;
};

[[noreturn]] void fail(uint32_t code, const char *message, const char *hint = "")
{
    vdens_error error{};
    vdens_fail(&error, code, code == VDENS_ERROR_OTHER ? errno : 0, "%s", message);
    vdens_hint(&error, "%s", hint);
    throw Failure(error);
}

class Counted {
public:
    Counted(const vdens_host &host, const std::string &vnl)
    {
        vdens_error error{};
        if (host.calls->open(host.services, vnl.c_str(), &inner, &error) != 0)
            throw Failure(error);
        int fd = host.calls->kept(host.services);
        bool is_new = fd < 0;
        if (is_new)
            fd = memfd_create("counts", MFD_CLOEXEC);
        if (fd < 0 || (is_new && ftruncate(fd, sizeof(Counts)) != 0))
            fail_closing(fd, "cannot make a file in memory");
        void *memory = mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (memory == MAP_FAILED)
            fail_closing(fd, "cannot map a file in memory");
        counts = static_cast<Counts *>(memory);
        // A host without sessions refuses, and the counts end with the link.
        host.calls->keep(host.services, fd, nullptr);
        close(fd);
        vdens_port port{};
        host.calls->port(host.services, &port);
        std::string message = std::string("counts the frames of ")
            + (port.interface[0] ? port.interface : "a cable") + (is_new ? "" : ", goes on");
        host.calls->log(VDENS_LOG_INFO, "count", message.c_str());
    }
    ~Counted()
    {
        if (counts != nullptr)
            munmap(counts, sizeof(Counts));
        inner.calls->close(inner.link);
    }
    Counted(const Counted &) = delete;
    Counted &operator=(const Counted &) = delete;

    vdens_link inner{};
    Counts *counts = nullptr;

private:
    [[noreturn]] void fail_closing(int fd, const char *message)
    {
        inner.calls->close(inner.link);
        if (fd >= 0)
            close(fd);
        fail(VDENS_ERROR_OTHER, message);
    }
};

Counted &of(void *link) { return *static_cast<Counted *>(link); }
const Counted &of(const void *link) { return *static_cast<const Counted *>(link); }

const vdens_link_calls calls = {
    sizeof(vdens_link_calls),
    [](const void *link) { return of(link).inner.calls->fds(of(link).inner.link); },
    [](void *link, vdens_batch *batch, vdens_error *error) {
        uint32_t before = batch->len;
        int result = of(link).inner.calls->recv(of(link).inner.link, batch, error);
        of(link).counts->received += batch->len - before;
        return result;
    },
    [](void *link, vdens_batch *batch, uint32_t start, vdens_error *error) {
        int32_t sent = of(link).inner.calls->send(of(link).inner.link, batch, start, error);
        of(link).counts->sent += sent > 0 ? static_cast<uint64_t>(sent) : 0;
        return sent;
    },
    [](void *link, vdens_state state) {
        of(link).inner.calls->other_side(of(link).inner.link, state);
    },
    [](const void *link) { return of(link).inner.calls->state(of(link).inner.link); },
    [](const void *link, char *text, size_t size) {
        int len = std::snprintf(text, size, R"({"extra":{"received":"%ju","sent":"%ju"}})",
                                static_cast<uintmax_t>(of(link).counts->received),
                                static_cast<uintmax_t>(of(link).counts->sent));
        return len < 0 ? size_t{0} : static_cast<size_t>(len);
    },
    [](void *link) { delete &of(link); },
};

int open_count(const vdens_request *request, vdens_link *link, vdens_error *error)
{
    // No exception leaves this function.
    try {
        std::string argument = vdens_argument(request);
        if (argument.size() < 2 || argument.front() != '{' || argument.back() != '}')
            fail(VDENS_ERROR_USAGE, "no VNL in braces", "write count://{VNL}");
        auto vnl = argument.substr(1, argument.size() - 2);
        *link = {std::make_unique<Counted>(request->host, vnl).release(), &calls};
        return 0;
    } catch (const Failure &failure) {
        *error = failure.error;
    } catch (const std::exception &failure) {
        vdens_fail(error, VDENS_ERROR_OTHER, 0, "cannot open the link: %s", failure.what());
    }
    return -1;
}

} // namespace

const uint32_t vdens_plugin_abi = VDENS_ABI;
const struct vdens_plugin vdens_plugin_c1 = {
    sizeof(struct vdens_plugin), "count", "counts the frames of another VNL", "0.1.0",
    VDENS_CAP_NESTS, open_count,
};
