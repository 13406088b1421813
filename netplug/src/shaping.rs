//! Limits on a pod's traffic: a token bucket (tc-tbf(8)) before each of the two links of its pair.
//!
//! What comes to the pod leaves the host by the host's end, so the bucket there limits it. What the pod sends is limited
//! before the interface inside: a queue there holds the sender back, where a policer on the host's end would drop, which
//! TCP takes badly, and a device to redirect through (ifb) would be one more link per pod that can be left behind. A
//! container with CAP_NET_ADMIN over the pod's namespace could remove it.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use rtnetlink::packet_core::DefaultNla;

use crate::config::Rate;
use crate::error::Result;
use crate::sys::netlink::{CREATE, REPLACE, Socket};
use crate::veth::Batch;

/// The kind of queue.
pub(crate) const KIND: &str = "tbf";

// Attributes of the queue and the link layer of its rate (linux/pkt_sched.h).
const PARAMETERS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
const ETHERNET: u8 = 1;
/// What a frame has before its payload.
const HEADER: u64 = 14;

/// Puts a limit on what leaves by a link, or takes away the one that is there. `object` is for error messages.
pub(crate) fn limit(
    socket: &mut Socket,
    object: &str,
    link: u32,
    shaped: bool,
    mtu: u32,
    rate: Option<Rate>,
) -> Result<()> {
    let mut message = TcMessage::with_index(i32::try_from(link).unwrap_or(i32::MAX));
    message.header.parent = TcHandle::ROOT;
    let mut batch = Batch::default();
    match rate {
        None if !shaped => return Ok(()),
        None => {
            batch.add("take away the traffic limit of", RouteNetlinkMessage::DelQueueDiscipline(message), 0);
        }
        Some(rate) => {
            message.attributes =
                vec![TcAttribute::Kind(KIND.into()), TcAttribute::Options(options(rate, mtu))];
            let message = RouteNetlinkMessage::NewQueueDiscipline(message);
            batch.add("limit the traffic of", message, CREATE | REPLACE);
        }
    }
    batch.send(socket, object)
}

/// Bytes per second, bytes that may pass at once, bytes that may wait.
fn bucket(rate: Rate, mtu: u32) -> (u64, u32, u32) {
    let bytes = (rate.bits_per_second / 8).max(1);
    // A frame that is larger than the bucket would never pass.
    let least = 2 * (u64::from(mtu) + HEADER);
    let burst = rate.burst_bytes.map_or(bytes / 10, u64::from).max(least);
    // As much as the CNI plugins let wait: 25 ms beside the bucket.
    let waiting = burst.saturating_add(bytes / 40);
    let narrow = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
    (bytes, narrow(burst), narrow(waiting))
}

/// `struct tc_tbf_qopt`, and what does not fit into it.
fn options(rate: Rate, mtu: u32) -> Vec<TcOption> {
    let (bytes, burst, waiting) = bucket(rate, mtu);
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes());
    // No peak rate.
    parameters.extend([0; 12]);
    parameters.extend(waiting.to_ne_bytes());
    // Bucket and largest frame as times, for kernels that do not know the next attributes.
    parameters.extend([0; 8]);
    let option = |kind, bytes: Vec<u8>| TcOption::Other(DefaultNla::new(kind, bytes));
    vec![
        option(PARAMETERS, parameters),
        option(RATE64, bytes.to_ne_bytes().to_vec()),
        option(BURST, burst.to_ne_bytes().to_vec()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bits_per_second: u64, burst_bytes: Option<u32>) -> (u64, u32, u32) {
        bucket(Rate { bits_per_second, burst_bytes }, 1500)
    }

    #[test]
    fn a_bucket_holds_a_tenth_of_a_second_but_two_frames() {
        assert_eq!(of(80_000_000, None), (10_000_000, 1_000_000, 1_250_000));
        assert_eq!(of(1_000, None), (125, 3028, 3031));
        assert_eq!(of(0, None), (1, 3028, 3028));
        assert_eq!(of(1_000_000_000_000_000, None), (125_000_000_000_000, u32::MAX, u32::MAX));
        assert_eq!(of(8_000_000, Some(50_000)), (1_000_000, 50_000, 75_000));
        assert_eq!(of(8_000_000, Some(1)).1, 3028);
    }
}
