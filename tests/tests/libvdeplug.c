/* A program that uses the C interface of libvdeplug. usage: libvdeplug TEST [VNL]...
 *
 * functions A B   calls every function; A and B are two ends of one cable
 * wrong A         calls every function with wrong arguments
 * threads A B C D a thread for each end of two cables
 * fork A B        a child goes on with a connection that its parent closes
 * children A      the connection's helper is nobody's child
 * stray           closes its standard streams and opens null://
 * hold A          opens A, and tells when it is over
 * open VNL...     opens each VNL and prints 0, or errno
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libvdeplug.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) \
    ((what) ? (void)0 : (fprintf(stderr, "line %d: %s: %m\n", __LINE__, #what), exit(1)))
#define FAILS(call, number) (errno = 0, CHECK((call) == -1 && errno == (number)))

/* No peer has a queue for more. */
enum { FRAMES = 20000, BURST = 4, PATIENCE = 60000 };

static VDECONN *opened(char *vnl)
{
    VDECONN *conn = vde_open(vnl, "a test", NULL);
    if (conn == NULL)
        fprintf(stderr, "%s: %m\n", vnl), exit(1);
    return conn;
}

/* A frame of the station `station`, number `number`. */
static size_t make(unsigned char *frame, int station, unsigned number)
{
    size_t length = 60 + number % 1455;
    memset(frame, number, length);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, (unsigned char[]){2, 0, 0, 0, 0, station, 0x88, 0xb5}, 8);
    memcpy(frame + 14, &number, sizeof number);
    return length;
}

/* Receives the next frame of a station, whatever others send. */
static size_t next(VDECONN *conn, unsigned char *frame, int station)
{
    for (;;) {
        struct pollfd ready = {vde_datafd(conn), POLLIN, 0};
        CHECK(poll(&ready, 1, PATIENCE) == 1);
        ssize_t length = vde_recv(conn, frame, VDE_ETHBUFSIZE, 0);
        CHECK(length >= 1);
        if (length >= 60 && frame[11] == station && frame[12] == 0x88 && frame[13] == 0xb5)
            return length;
    }
}

/* Waits until frames get from one connection to the other. */
static void meet(VDECONN *from, VDECONN *to, int station)
{
    unsigned char frame[VDE_ETHBUFSIZE];
    for (int tries = 0; tries < PATIENCE / 20; tries++) {
        CHECK(vde_send(from, frame, make(frame, station, 0), 0) > 0);
        struct pollfd ready = {vde_datafd(to), POLLIN, 0};
        while (poll(&ready, 1, 20) == 1)
            if (vde_recv(to, frame, sizeof frame, 0) > 0 && frame[11] == station)
                return;
    }
    CHECK(!"frames arrive");
}

/* Receives what is left. */
static void drain(VDECONN *conn)
{
    unsigned char frame[VDE_ETHBUFSIZE];
    struct pollfd ready = {vde_datafd(conn), POLLIN, 0};
    while (poll(&ready, 1, 200) == 1)
        vde_recv(conn, frame, sizeof frame, 0);
}

/* Sends frames from one connection to the other, a few at a time, and compares them. */
static void exchange(VDECONN *from, VDECONN *to, int station, unsigned frames)
{
    unsigned char sent[VDE_ETHBUFSIZE], got[VDE_ETHBUFSIZE];
    meet(from, to, station);
    drain(to);
    for (unsigned number = 1; number <= frames; number += BURST) {
        for (unsigned i = 0; i < BURST; i++) {
            size_t length = make(sent, station, number + i);
            CHECK(vde_send(from, sent, length, 0) == (ssize_t)length);
        }
        for (unsigned i = 0; i < BURST; i++) {
            size_t length = make(sent, station, number + i);
            CHECK(next(to, got, station) == length && memcmp(sent, got, length) == 0);
        }
    }
}

static unsigned frames_out, errors_out;

static ssize_t on_frame(void *opaque, void *buf, size_t count)
{
    CHECK(opaque == &frames_out && (count == 5 ? memcmp(buf, "hello", 5) == 0 : count == 9000));
    frames_out++;
    return count;
}

static void on_error(void *opaque, int type, char *format, ...)
{
    CHECK(opaque == &frames_out && type == PACKET_LENGTH_ERROR && strchr(format, '%'));
    errors_out++;
}

static void streams(void)
{
    int pipe_fds[2];
    unsigned char bytes[10000] = {0};
    CHECK(pipe(pipe_fds) == 0);
    VDESTREAM *stream = vdestream_open(&frames_out, pipe_fds[1], on_frame, on_error);
    CHECK(stream != NULL);
    CHECK(vdestream_send(stream, "hello", 5) == 7);
    CHECK(vdestream_send(stream, bytes, 9000) == 9002);
    FAILS(vdestream_send(stream, bytes, sizeof bytes), EMSGSIZE);
    CHECK(read(pipe_fds[0], bytes, sizeof bytes) == 9009);
    CHECK(memcmp(bytes, "\0\5hello\x23\x28", 9) == 0);
    for (size_t piece = 1; piece <= 9009; piece += 1 + piece * 3)
        for (size_t at = 0; at < 9009; at += piece)
            vdestream_recv(stream, bytes + at, at + piece < 9009 ? piece : 9009 - at);
    CHECK(frames_out % 2 == 0 && frames_out >= 14 && errors_out == 0);
    /* Behind a length that is too large, the next piece is a new start. */
    unsigned before = frames_out;
    vdestream_recv(stream, (unsigned char *)"\xff\xffgarbage", 9);
    CHECK(errors_out == 1 && frames_out == before);
    vdestream_recv(stream, bytes, 7);
    CHECK(frames_out == before + 1);
    vdestream_close(stream);
    close(pipe_fds[0]);
    stream = vdestream_open(NULL, pipe_fds[1], NULL, NULL);
    vdestream_recv(stream, (unsigned char *)"\0\1x\xff\xff", 5);
    signal(SIGPIPE, SIG_IGN);
    FAILS(vdestream_send(stream, "hello", 5), EPIPE);
    vdestream_close(stream);
    close(pipe_fds[1]);
}

static int functions(char **vnls)
{
    unsigned char frame[VDE_ETHBUFSIZE];
    struct vde_open_args args = {0, NULL, 0700};
    VDECONN *a = vde_open(vnls[0], "first", &args), *b = opened(vnls[1]);
    CHECK(a != NULL);
    CHECK(fcntl(vde_datafd(a), F_GETFD) & FD_CLOEXEC && fcntl(vde_ctlfd(a), F_GETFD) & FD_CLOEXEC);
    CHECK(!(fcntl(vde_datafd(a), F_GETFL) & O_NONBLOCK));
    exchange(a, b, 1, 2000);
    exchange(b, a, 2, 2000);
    drain(a), drain(b);
    /* Without waiting. */
    FAILS(vde_recv(b, frame, sizeof frame, MSG_DONTWAIT), EAGAIN);
    CHECK(fcntl(vde_datafd(b), F_SETFL, O_NONBLOCK) == 0);
    FAILS(vde_recv(b, frame, sizeof frame, 0), EAGAIN);
    CHECK(fcntl(vde_datafd(b), F_SETFL, 0) == 0);
    /* With waiting, and a buffer that is too short. */
    CHECK(vde_send(a, frame, make(frame, 1, 1000), 0) == 1060);
    CHECK(vde_recv(b, frame, 100, 0) == 100 && frame[11] == 1);
    /* What is no frame goes nowhere. */
    for (size_t length = 0; length < 14; length++)
        CHECK(vde_send(a, frame, length, 0) == (ssize_t)length);
    FAILS(vde_recv(b, frame, sizeof frame, MSG_DONTWAIT), EAGAIN);
    struct pollfd control = {vde_ctlfd(a), POLLIN, 0};
    CHECK(poll(&control, 1, 0) == 0);
    CHECK(vde_close(a) == 0 && vde_close(b) == 0);
    streams();
    return 0;
}

static int wrong(char **vnls)
{
    unsigned char frame[VDE_ETHBUFSIZE] = {0};
    struct vde_open_args args = {-1, NULL, 0};
    FAILS(vde_recv(NULL, frame, sizeof frame, 0), EINVAL);
    FAILS(vde_send(NULL, frame, 60, 0), EINVAL);
    FAILS(vde_datafd(NULL), EINVAL);
    FAILS(vde_ctlfd(NULL), EINVAL);
    FAILS(vde_close(NULL), EINVAL);
    CHECK(vde_open(vnls[0], NULL, &args) == NULL && errno == EINVAL);
    args.port = 0, args.group = "no such group", args.mode = 07777777;
    CHECK(vde_open(vnls[0], NULL, &args) == NULL && errno == EINVAL);
    args.group = "\xff";
    CHECK(vde_open(vnls[0], NULL, &args) == NULL && errno == EINVAL);
    CHECK(vde_open("nosuch://\xff", "\n\xff", NULL) == NULL && errno == EINVAL);
    VDECONN *conn = vde_open_real(vnls[0], NULL, 99, NULL);
    CHECK(conn != NULL);
    FAILS(vde_recv(conn, NULL, 100, 0), EINVAL);
    FAILS(vde_recv(conn, frame, 0, 0), EINVAL);
    FAILS(vde_send(conn, NULL, 100, 0), EINVAL);
    /* A closed connection is refused, as often as one likes. */
    CHECK(vde_close(conn) == 0);
    FAILS(vde_close(conn), EBADF);
    FAILS(vde_recv(conn, frame, sizeof frame, 0), EBADF);
    FAILS(vde_send(conn, frame, 60, 0), EBADF);
    FAILS(vde_datafd(conn), EBADF);
    FAILS(vde_ctlfd(conn), EBADF);
    /* Descriptors that the program itself has closed. */
    conn = opened(vnls[0]);
    close(vde_datafd(conn));
    FAILS(vde_recv(conn, frame, sizeof frame, 0), EBADF);
    FAILS(vde_send(conn, frame, 60, 0), EBADF);
    CHECK(vde_close(conn) == 0);
    FAILS(vdestream_send(NULL, frame, 60), EINVAL);
    vdestream_recv(NULL, frame, 60);
    vdestream_close(NULL);
    VDESTREAM *stream = vdestream_open(NULL, -1, NULL, NULL);
    FAILS(vdestream_send(stream, frame, 60), EBADF);
    FAILS(vdestream_send(stream, NULL, 60), EINVAL);
    vdestream_recv(stream, NULL, 60);
    vdestream_close(stream);
    /* No process, no program. */
    setenv("VDENS_VDE_PLUG", "/bin/true", 1);
    CHECK(vde_open("null://", NULL, NULL) == NULL && errno == EIO);
    setenv("VDENS_VDE_PLUG", "/nonexistent/vde_plug", 1);
    CHECK(vde_open("null://", NULL, NULL) == NULL && errno == ENOENT);
    return 0;
}

static void *thread(void *vnls)
{
    VDECONN *a = opened(((char **)vnls)[0]), *b = opened(((char **)vnls)[1]);
    exchange(a, b, 1, FRAMES);
    CHECK(vde_close(a) == 0 && vde_close(b) == 0);
    return NULL;
}

static int threads(char **vnls)
{
    pthread_t others[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&others[i], NULL, thread, vnls + 2 * i) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(others[i], NULL) == 0);
    return 0;
}

static int forks(char **vnls)
{
    VDECONN *a = opened(vnls[0]), *b = opened(vnls[1]);
    exchange(a, b, 1, 100);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        usleep(100000);
        exchange(a, b, 2, 100);
        CHECK(vde_close(a) == 0 && vde_close(b) == 0);
        exit(0);
    }
    CHECK(vde_close(a) == 0 && vde_close(b) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return WEXITSTATUS(status);
}

static volatile sig_atomic_t children_seen;

static void on_child(int signal)
{
    (void)signal;
    children_seen++;
}

static int children(char **vnls)
{
    /* The dispositions of a program are its own, and so are its descriptors. */
    signal(SIGCHLD, on_child);
    signal(SIGTERM, SIG_IGN);
    int inherited = open("/dev/null", O_RDONLY);
    CHECK(inherited >= 0);
    for (int i = 0; i < 3; i++) {
        VDECONN *conn = opened(vnls[0]);
        FAILS(waitpid(-1, NULL, WNOHANG | __WALL), ECHILD);
        CHECK(vde_close(conn) == 0);
    }
    CHECK(children_seen == 0);
    signal(SIGCHLD, SIG_IGN);
    CHECK(vde_close(opened(vnls[0])) == 0);
    sigset_t all, now;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    CHECK(vde_close(opened(vnls[0])) == 0);
    sigprocmask(SIG_SETMASK, NULL, &now);
    CHECK(sigismember(&now, SIGTERM) == 1);
    return 0;
}

static int stray(char **vnls)
{
    int streams[] = {0, 1, 2};
    for (int i = 0; i < 3; i++) {
        close(streams[i]);
        VDECONN *conn = vde_open("null://", NULL, NULL);
        if (conn == NULL || vde_send(conn, "a frame that goes nowhere", 25, 0) != 25)
            return 10 + i;
        vde_close(conn);
    }
    return vnls[0] != NULL;
}

static int hold(char **vnls)
{
    unsigned char frame[VDE_ETHBUFSIZE];
    VDECONN *conn = opened(vnls[0]);
    puts("open"), fflush(stdout);
    struct pollfd control = {vde_ctlfd(conn), POLLIN, 0};
    CHECK(poll(&control, 1, -1) == 1);
    CHECK(read(vde_ctlfd(conn), frame, 1) == 0);
    /* It says so each time, and does not keep a program awake that only polls for frames. */
    for (int i = 0; i < 3; i++) {
        ssize_t length;
        while ((length = vde_recv(conn, frame, sizeof frame, MSG_DONTWAIT)) > 0)
            ;
        CHECK(length == -1 && errno == ECONNRESET);
    }
    struct pollfd data = {vde_datafd(conn), POLLIN, 0};
    CHECK(poll(&data, 1, 100) == 0);
    CHECK(vde_close(conn) == 0);
    puts("over"), fflush(stdout);
    return 0;
}

static int opens(char **vnls)
{
    for (; *vnls != NULL; vnls++) {
        errno = 0;
        VDECONN *conn = vde_open(strcmp(*vnls, "NULL") == 0 ? NULL : *vnls, NULL, NULL);
        printf("%d\n", conn == NULL ? errno : vde_close(conn));
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*run)(char **); } tests[] = {
        {"functions", functions}, {"wrong", wrong}, {"threads", threads}, {"fork", forks},
        {"children", children}, {"stray", stray}, {"hold", hold}, {"open", opens},
    };
    for (size_t i = 0; argc > 1 && i < sizeof tests / sizeof *tests; i++)
        if (strcmp(argv[1], tests[i].name) == 0)
            return tests[i].run(argv + 2);
    return 2;
}
