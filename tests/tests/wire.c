/*
 * Frames on the wire: `wire INTERFACE send NAME | tags | sniff | fill`. Linked statically, so that a
 * guest without libraries can run it.
 *
 * `send` broadcasts a frame without a tag, and one in each of the VLANs 10, 20 and 30, with NAME
 * and the VLAN in them. `tags` broadcasts frames with other tags, and one without. `sniff` prints
 * such frames as they come, and the outermost tag that they have: the kernel tells of it beside the
 * frame (packet(7), PACKET_AUXDATA). `fill` sends frames from 200,000 addresses, each to itself.
 * The ethertype is IEEE's first local experimental one.
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

/* A frame without its tags, and where two tags go. */
struct frame {
    unsigned char to[6], from[6], rest[2 * 4 + 2 + TEXT];
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

/* Sends a frame with so many tags, the outermost first, and a text. */
static void put(int s, struct frame *frame, const unsigned *tags, unsigned count, const char *text)
{
    unsigned short type = htons(TYPE);
    unsigned char *end = frame->rest;
    memset(frame->rest, 0, sizeof frame->rest);
    for (unsigned i = 0; i < count; i++, end += 4) {
        unsigned tag = htonl(tags[i]);
        memcpy(end, &tag, 4);
    }
    memcpy(end, &type, 2);
    strcpy((char *)end + 2, text);
    if (send(s, frame, (size_t)(end + 2 + TEXT - frame->to), 0) < 0)
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
        unsigned tag = (unsigned)ETH_P_8021Q << 16 | vlans[i];
        put(s, &frame, &tag, vlans[i] != 0, text);
    }
}

static void broadcast_tags(int s)
{
    static const struct {
        const char *name;
        unsigned count, tags[2];
    } kinds[] = {
        { "priority", 1, { 0x81006000 } },
        { "provider", 1, { 0x88a80014 } },
        { "provider-vlan", 2, { 0x88a80014, 0x8100000a } },
        { "double", 2, { 0x8100000a, 0x81000014 } },
        { "none", 0, { 0 } },
    };
    struct frame frame = { .to = { 255, 255, 255, 255, 255, 255 }, .from = { 2 } };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        put(s, &frame, kinds[i].tags, kinds[i].count, kinds[i].name);
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
        unsigned char *end = frame.rest;
        unsigned short type;
        if (recvmsg(s, &message, 0) < 0)
            err(1, "recvmsg");
        memcpy(&type, end, 2);
        if (type == htons(ETH_P_8021Q))
            memcpy(&type, end += 4, 2);
        beside = CMSG_FIRSTHDR(&message);
        if (from.sll_pkttype == PACKET_OUTGOING || type != htons(TYPE) || !beside)
            continue;
        struct tpacket_auxdata *about = (void *)CMSG_DATA(beside);
        int is_tagged = about->tp_status & TP_STATUS_VLAN_VALID;
        printf("%s %d\n", end + 2, is_tagged ? about->tp_vlan_tci & 0xfff : 0);
    }
}

static void fill(int s)
{
    for (unsigned number = 0; number < 200000; number++) {
        struct frame frame = { .from = { 2, 9, number >> 24, number >> 16, number >> 8, number } };
        memcpy(frame.to, frame.from, sizeof frame.to);
        put(s, &frame, NULL, 0, "");
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[2], "send"))
        broadcast(packets(argv[1]), argv[3]);
    else if (argc == 3 && !strcmp(argv[2], "tags"))
        broadcast_tags(packets(argv[1]));
    else if (argc == 3 && !strcmp(argv[2], "sniff"))
        sniff(packets(argv[1]));
    else if (argc == 3 && !strcmp(argv[2], "fill"))
        fill(packets(argv[1]));
    else
        errx(2, "usage: wire INTERFACE send NAME | tags | sniff | fill");
    return 0;
}
