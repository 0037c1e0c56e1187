//! Links that are changed one at a time, while the lab runs: `vdectl link`.
//!
//! Impairments change in the worker that moves the frames ([`Outside`](crate::lab::outside)). To
//! take a link down is
//!
//! - for a link with impairments, to have its worker take the carrier away at both ends;
//! - for a switch's port, to set the switch's end down;
//! - for any other link, to set the interface down that was named. The other end loses its carrier.
//!
//! With an interface that is set down the kernel drops its IPv6 addresses, and the routes over it.
//! The supervisor gives them back with the link.

use ipnet::IpNet;
use netlink_packet_route::route::RouteMessage;
use vdens_impairment::request::Request;
use vdens_impairment::{Keys, Settings, swapped_word};

use super::parts::Parts;
use crate::error::{Error, ErrorKind, Result};
use crate::ipc::status::lab::Happening;
use crate::lab::shape::{Cable, Interface};
use crate::sys::netlink::Batch;

/// How a link was taken down.
#[derive(Debug)]
pub(super) enum Down {
    /// Its worker gives it no carrier.
    Worker,
    /// The switch's end is down.
    Port,
    /// An interface of a node is down, which had these addresses and routes.
    Interface(Interface, Vec<IpNet>, Vec<RouteMessage>),
}

impl Parts<'_> {
    /// Changes the link at an interface.
    ///
    /// # Errors
    /// There is no such interface, the link cannot be changed so, or the kernel refuses.
    pub(super) fn change_link(&mut self, interface: &Interface, request: &Request) -> Result<()> {
        let cable = self.cable_at(interface)?;
        match request {
            Request::Show => Ok(()),
            Request::Set { replace, words } => {
                let is_second = cable.plugs()[0].interface != *interface;
                self.set_impairments(&cable, *replace, words, is_second)
            }
            Request::Down => self.take_down(&cable, interface),
            Request::Up => self.bring_up(&cable),
        }
    }

    /// The cable that is plugged into an interface.
    fn cable_at(&self, interface: &Interface) -> Result<Cable> {
        let mut cables = self.shape.cables.iter();
        let is_it = |cable: &&Cable| {
            let mut plugs = cable.plugs().iter();
            plugs.any(|plug| plug.interface == *interface)
        };
        let found = cables.find(is_it).cloned();
        found.ok_or_else(|| {
            let message = format!("the lab has no link at {interface}");
            Error::new(ErrorKind::NotFound, message).hint("vdectl lab status shows the links")
        })
    }

    /// Changes keys of `netem://`, as one end of the link has them.
    fn set_impairments(
        &mut self,
        cable: &Cable,
        replace: bool,
        words: &[String],
        is_second: bool,
    ) -> Result<()> {
        let Some(text) = cable.impairments() else {
            let message = format!("the link {cable} cannot be impaired");
            return Err(Error::usage(message)
                .hint("write both = {} for it in the lab's file, then vdectl lab apply"));
        };
        let words: Vec<String> = words
            .iter()
            .map(|word| {
                if is_second {
                    swapped_word(word)
                } else {
                    word.clone()
                }
            })
            .collect();
        let mut keys = if replace {
            Keys::default()
        } else {
            Keys::parse(text)?
        };
        words.iter().try_for_each(|word| keys.change(word))?;
        Settings::of(&keys)?;
        let new = cable.with_impairments(&keys.to_string());
        self.impair([cable, &new], &Request::Set { replace, words })
    }

    /// Gives a cable the impairments that its new form has.
    pub(super) fn impair(&mut self, [old, new]: [&Cable; 2], request: &Request) -> Result<()> {
        self.outside.impair([old, new], request, &self.panel)?;
        self.shape.cables.remove(old);
        self.shape.cables.insert(new.clone());
        self.happened.push(Happening::LinkImpaired {
            link: new.to_string(),
            impairments: new.impairments().unwrap_or_default().to_owned(),
        });
        Ok(())
    }

    fn take_down(&mut self, cable: &Cable, interface: &Interface) -> Result<()> {
        let place = cable.plugs()[0].interface.clone();
        if self.down.contains_key(&place) {
            return Ok(());
        }
        let down = match cable {
            _ if cable.impairments().is_some() => {
                self.outside.unplug(cable, true, &self.panel)?;
                Down::Worker
            }
            Cable::Port { .. } => {
                self.wiring.set_port(interface, false)?;
                Down::Port
            }
            _ => {
                let netlink = &self.nodes.network(&interface.node)?.netlink;
                let views = netlink.interfaces()?;
                let view = views.into_iter().find(|view| view.name == interface.name);
                let view = view.ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, format!("{interface} was deleted"))
                })?;
                let routes = netlink.routes(view.index)?;
                netlink.set_down(&interface.name)?;
                Down::Interface(interface.clone(), view.addresses, routes)
            }
        };
        self.down.insert(place, down);
        let link = cable.to_string();
        self.happened.push(Happening::LinkDown { link });
        Ok(())
    }

    fn bring_up(&mut self, cable: &Cable) -> Result<()> {
        let place = &cable.plugs()[0].interface;
        match self.down.get(place) {
            None => return Ok(()),
            Some(Down::Worker) => self.outside.unplug(cable, false, &self.panel)?,
            Some(Down::Port) => self.wiring.set_port(place, true)?,
            Some(Down::Interface(interface, addresses, routes)) => {
                let (name, node) = (&interface.name, &interface.node);
                let netlink = &self.nodes.network(node)?.netlink;
                let index = netlink.index(name)?;
                let mut batch = Batch::default();
                batch.set_up(index, name);
                for address in addresses {
                    batch.add_address(index, name, *address);
                }
                for route in routes {
                    batch.add_route(route.clone(), index, name);
                }
                netlink.perform(batch)?;
            }
        }
        self.down.remove(place);
        let link = cable.to_string();
        self.happened.push(Happening::LinkUp { link });
        Ok(())
    }
}
