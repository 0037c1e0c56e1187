//! The expressions of a rule.

use crate::message::Message;
use crate::numbers::*;

/// A rule's expressions in the making.
pub struct Expressions<'a>(pub(crate) &'a mut Message);

impl Expressions<'_> {
    /// Adds an expression: its name, and its attributes.
    pub fn add(&mut self, name: &str, fill: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(NFTA_LIST_ELEM, |element| {
            element
                .put_str(NFTA_EXPR_NAME, name)
                .nest(NFTA_EXPR_DATA, fill);
        });
        self
    }

    /// Goes on if a key of the packet's metadata (`NFT_META_*`) has a value.
    pub fn meta_is(&mut self, key: u32, value: &[u8]) -> &mut Self {
        self.add("meta", |data| {
            data.put_be32(NFTA_META_DREG, NFT_REG_1)
                .put_be32(NFTA_META_KEY, key);
        });
        self.compare(NFT_CMP_EQ, value)
    }

    /// Goes on if bytes of the transport header have a value, under a mask.
    pub fn transport_is(&mut self, offset: u32, mask: Option<&[u8]>, value: &[u8]) -> &mut Self {
        self.load(NFT_PAYLOAD_TRANSPORT_HEADER, offset, value.len() as u32)
            .mask(mask)
            .compare(NFT_CMP_EQ, value)
    }

    /// Goes on if bytes of the Ethernet header have a value. A VLAN's tag is part of it, also where
    /// the kernel keeps it beside the frame.
    pub fn ethernet_is(&mut self, offset: u32, value: &[u8]) -> &mut Self {
        self.load(NFT_PAYLOAD_LL_HEADER, offset, value.len() as u32)
            .compare(NFT_CMP_EQ, value)
    }

    /// Goes on if bytes of the Ethernet header have not a value, under a mask.
    pub fn ethernet_is_not(&mut self, offset: u32, mask: &[u8], value: &[u8]) -> &mut Self {
        self.load(NFT_PAYLOAD_LL_HEADER, offset, value.len() as u32)
            .mask(Some(mask))
            .compare(NFT_CMP_NEQ, value)
    }

    fn load(&mut self, header: u32, offset: u32, length: u32) -> &mut Self {
        self.add("payload", |data| {
            data.put_be32(NFTA_PAYLOAD_DREG, NFT_REG_1);
            data.put_be32(NFTA_PAYLOAD_BASE, header);
            data.put_be32(NFTA_PAYLOAD_OFFSET, offset);
            data.put_be32(NFTA_PAYLOAD_LEN, length);
        })
    }

    fn mask(&mut self, mask: Option<&[u8]>) -> &mut Self {
        let Some(mask) = mask else {
            return self;
        };
        self.add("bitwise", |data| {
            data.put_be32(NFTA_BITWISE_SREG, NFT_REG_1)
                .put_be32(NFTA_BITWISE_DREG, NFT_REG_1)
                .put_be32(NFTA_BITWISE_LEN, mask.len() as u32);
            data.nest(NFTA_BITWISE_MASK, |d| {
                d.put(NFTA_DATA_VALUE, mask);
            });
            data.nest(NFTA_BITWISE_XOR, |d| {
                d.put(NFTA_DATA_VALUE, &vec![0; mask.len()]);
            });
        })
    }

    fn compare(&mut self, how: u32, value: &[u8]) -> &mut Self {
        self.add("cmp", |data| {
            data.put_be32(NFTA_CMP_SREG, NFT_REG_1)
                .put_be32(NFTA_CMP_OP, how);
            data.nest(NFTA_CMP_DATA, |d| {
                d.put(NFTA_DATA_VALUE, value);
            });
        })
    }

    /// Sets the packet's mark.
    pub fn set_mark(&mut self, mark: u32) -> &mut Self {
        self.set(&mark.to_ne_bytes()).add("meta", |data| {
            data.put_be32(NFTA_META_KEY, NFT_META_MARK)
                .put_be32(NFTA_META_SREG, NFT_REG_1);
        })
    }

    /// Diverts to a transparent socket's port, in an address family (`NFPROTO_*`).
    pub fn tproxy(&mut self, family: u8, port: u16) -> &mut Self {
        self.set(&port.to_be_bytes()).add("tproxy", |data| {
            data.put_be32(NFTA_TPROXY_FAMILY, u32::from(family))
                .put_be32(NFTA_TPROXY_REG_PORT, NFT_REG_1);
        })
    }

    fn set(&mut self, value: &[u8]) -> &mut Self {
        self.add("immediate", |data| {
            data.put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
            data.nest(NFTA_IMMEDIATE_DATA, |d| {
                d.put(NFTA_DATA_VALUE, value);
            });
        })
    }

    /// Ends the chain: the packet goes on.
    pub fn accept(&mut self) -> &mut Self {
        self.verdict(NF_ACCEPT)
    }

    /// Drops the packet.
    pub fn drop(&mut self) -> &mut Self {
        self.verdict(NF_DROP)
    }

    fn verdict(&mut self, code: u32) -> &mut Self {
        self.add("immediate", |data| {
            data.put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            data.nest(NFTA_IMMEDIATE_DATA, |d| {
                d.nest(NFTA_DATA_VERDICT, |verdict| {
                    verdict.put_be32(NFTA_VERDICT_CODE, code);
                });
            });
        })
    }
}
