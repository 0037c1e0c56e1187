/*
 * Frames on the wire: `wire INTERFACE send NAME | sniff | fill`. Linked statically, so that a
 * guest without libraries can run it.
 *
 * `send` broadcasts a frame without a tag, and one in each of the VLANs 10, 20 and 30, with NAME
 * and the VLAN in them. `sniff` prints such frames as they come, and the tag that they have: the
 * kernel tells of it beside the frame (packet(7), PACKET_AUXDATA). `fill` sends frames from 200,000
 * addresses, each to itself. The ethertype is IEEE's first local experimental one.
 */

#include <arpa/inet.h>
#include <err.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

enum { TYPE = 0x88b5, TEXT = 60 };

/* A frame without its tag, and where a tag goes. */
struct frame {
    unsigned char to[6], from[6], rest[4 + 2 + TEXT];
};

static int packets(const char *interface)
{
    int index = (int)if_nametoindex(interface);
    struct sockaddr_ll at = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = index
    };
    /* A card drops frames of VLANs that the kernel did not ask for, unless it is promiscuous. */
    struct packet_mreq all = { .mr_ifindex = index, .mr_type = PACKET_MR_PROMISC };
    int on = 1, room = 1 << 22;
    int s = socket(AF_PACKET, SOCK_RAW, 0);
    if (s < 0 || index == 0 || setsockopt(s, SOL_SOCKET, SO_RCVBUF, &room, sizeof room)
        || setsockopt(s, SOL_PACKET, PACKET_AUXDATA, &on, sizeof on)
        || setsockopt(s, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all)
        || bind(s, (struct sockaddr *)&at, sizeof at))
        err(1, "%s", interface);
    return s;
}

/* Sends a frame with a text, and with the tag of a VLAN unless that is 0. */
static void put(int s, struct frame *frame, unsigned vlan, const char *text)
{
    unsigned short head[] = { htons(ETH_P_8021Q), htons(vlan), htons(TYPE) };
    size_t skip = vlan ? 0 : 2, length = sizeof head - 2 * skip;
    memset(frame->rest, 0, sizeof frame->rest);
    memcpy(frame->rest, head + skip, length);
    strcpy((char *)frame->rest + length, text);
    if (send(s, frame, 12 + length + TEXT, 0) < 0)
        err(1, "send");
}

static void broadcast(int s, const char *name)
{
    static const unsigned vlans[] = { 0, 10, 20, 30 };
    struct frame frame = { .to = { 255, 255, 255, 255, 255, 255 }, .from = { 2 } };
    char text[TEXT];
    if (getrandom(frame.from + 3, 3, 0) != 3)
        err(1, "getrandom");
    for (size_t i = 0; i < sizeof vlans / sizeof *vlans; i++) {
        if (snprintf(text, sizeof text, "%s/%u", name, vlans[i]) >= TEXT)
            errx(1, "%s is too long", name);
        put(s, &frame, vlans[i], text);
    }
}

static void sniff(int s)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    for (;;) {
        struct frame frame = { 0 };
        struct sockaddr_ll from;
        union {
            struct cmsghdr header;
            char bytes[CMSG_SPACE(sizeof(struct tpacket_auxdata))];
        } control;
        struct iovec part = { &frame, sizeof frame - 1 };
        struct msghdr message = { &from, sizeof from, &part, 1, &control, sizeof control, 0 };
        struct cmsghdr *beside;
        unsigned short type;
        if (recvmsg(s, &message, 0) < 0)
            err(1, "recvmsg");
        memcpy(&type, frame.rest, 2);
        beside = CMSG_FIRSTHDR(&message);
        if (from.sll_pkttype == PACKET_OUTGOING || type != htons(TYPE) || !beside)
            continue;
        struct tpacket_auxdata *about = (void *)CMSG_DATA(beside);
        int is_tagged = about->tp_status & TP_STATUS_VLAN_VALID;
        printf("%s %d\n", frame.rest + 2, is_tagged ? about->tp_vlan_tci & 0xfff : 0);
    }
}

static void fill(int s)
{
    for (unsigned number = 0; number < 200000; number++) {
        struct frame frame = { .from = { 2, 9, number >> 24, number >> 16, number >> 8, number } };
        memcpy(frame.to, frame.from, sizeof frame.to);
        put(s, &frame, 0, "");
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[2], "send"))
        broadcast(packets(argv[1]), argv[3]);
    else if (argc == 3 && !strcmp(argv[2], "sniff"))
        sniff(packets(argv[1]));
    else if (argc == 3 && !strcmp(argv[2], "fill"))
        fill(packets(argv[1]));
    else
        errx(2, "usage: wire INTERFACE send NAME | sniff | fill");
    return 0;
}
