//! Messages as they are sent: protocol buffers, as docs/stream.md describes them.
//!
//! What is read is measured before it is decoded: two bytes can announce a pool, which takes a hundred in memory.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{WireType, decode_key, decode_varint, skip_field};
use sluice_signals::{
    MAX_POOLS, MAX_SECONDS, Outcome, PoolTally, Report, Second, TIME_CLASSES, Tally, Times,
};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes of a message at most. A second with as many pools as a node tells of fits whatever they are called and however much was seen.
pub const MAX_MESSAGE_BYTES: usize = 3 << 20;

/// Characters of a namespace, and of a name, at most.
const MAX_NAMES: [usize; 2] = [63, 253];
/// Bytes of a pool at most: names, seven outcomes, classes and counts of times, and what says what each is.
const MAX_POOL_BYTES: usize =
    MAX_NAMES[0] + MAX_NAMES[1] + 5 * Outcome::COUNT + 6 * TIME_CLASSES + 24;
const _: () = assert!(MAX_POOLS * MAX_POOL_BYTES + 64 <= MAX_MESSAGE_BYTES);

/// Fields that are counted before a message is decoded.
const SECONDS_FIELD: u32 = 2;
const POOLS_FIELD: u32 = 2;

/// What a node saw lately.
#[derive(Clone, PartialEq, Message)]
struct ReportMessage {
    #[prost(fixed64, tag = "1")]
    session: u64,
    #[prost(message, repeated, tag = "2")]
    seconds: Vec<SecondMessage>,
}

/// What it saw in a second.
#[derive(Clone, PartialEq, Message)]
struct SecondMessage {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(message, repeated, tag = "2")]
    pools: Vec<PoolMessage>,
}

/// What it saw of a pool. Times are told by class, with how many there are in it.
#[derive(Clone, PartialEq, Message)]
struct PoolMessage {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, repeated, tag = "3")]
    outcomes: Vec<u32>,
    #[prost(uint32, repeated, tag = "4")]
    time_classes: Vec<u32>,
    #[prost(uint32, repeated, tag = "5")]
    time_counts: Vec<u32>,
}

/// What the operator could answer: there is nothing in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ack;

/// Bytes that a report takes.
pub(crate) fn encoded_bytes(report: &Report) -> usize {
    message_of(report).encoded_len()
}

fn message_of(report: &Report) -> ReportMessage {
    let seconds = report.seconds.iter().map(|second| SecondMessage {
        number: second.number,
        pools: second.pools.iter().map(pool_message).collect(),
    });
    ReportMessage {
        session: report.session,
        seconds: seconds.collect(),
    }
}

fn pool_message(pool: &PoolTally) -> PoolMessage {
    let times: Vec<(usize, u32)> = pool.tally.first_bytes.clone().into();
    let class = |class: usize| u32::try_from(class).unwrap_or(u32::MAX);
    PoolMessage {
        namespace: pool.namespace.clone(),
        name: pool.name.clone(),
        outcomes: pool.tally.outcomes.to_vec(),
        time_classes: times.iter().map(|(of, _)| class(*of)).collect(),
        time_counts: times.iter().map(|(_, count)| *count).collect(),
    }
}

fn report_of(message: ReportMessage) -> Result<Report, Status> {
    let seconds = message.seconds.into_iter().map(|second| {
        let pools = second.pools.into_iter().map(pool_of);
        Ok(Second {
            number: second.number,
            pools: pools.collect::<Result<_, Status>>()?,
        })
    });
    Ok(Report {
        session: message.session,
        seconds: seconds.collect::<Result<_, Status>>()?,
    })
}

fn pool_of(message: PoolMessage) -> Result<PoolTally, Status> {
    for (text, most) in [&message.namespace, &message.name]
        .into_iter()
        .zip(MAX_NAMES)
    {
        if text.is_empty() || text.len() > most {
            return Err(Status::invalid_argument("a pool's name is no name"));
        }
    }
    let mut tally = Tally::default();
    // An agent of a later version may know more outcomes.
    for (count, told) in tally.outcomes.iter_mut().zip(message.outcomes) {
        *count = told;
    }
    let classes = message.time_classes.into_iter();
    let times: Vec<(usize, u32)> = classes
        .map(|class| usize::try_from(class).unwrap_or(usize::MAX))
        .zip(message.time_counts)
        .collect();
    tally.first_bytes = Times::try_from(times).map_err(Status::invalid_argument)?;
    Ok(PoolTally {
        namespace: message.namespace,
        name: message.name,
        tally,
    })
}

/// Reads a message that is within the limits.
fn decode(mut bytes: impl Buf) -> Result<Report, Status> {
    let bytes = bytes.copy_to_bytes(bytes.remaining());
    let unreadable = |error: prost::DecodeError| {
        Status::invalid_argument(format!("the report cannot be read: {error}"))
    };
    let seconds = parts(&bytes, SECONDS_FIELD, MAX_SECONDS).map_err(unreadable)?;
    let seconds = seconds.ok_or_else(|| too_many("seconds", MAX_SECONDS))?;
    for second in seconds {
        let pools = parts(second, POOLS_FIELD, MAX_POOLS).map_err(unreadable)?;
        pools.ok_or_else(|| too_many("pools", MAX_POOLS))?;
    }
    report_of(ReportMessage::decode(bytes).map_err(unreadable)?)
}

fn too_many(what: &str, most: usize) -> Status {
    Status::invalid_argument(format!("a report has at most {most} {what}"))
}

/// The messages in a field of a message; `None`: there are more than `most`.
fn parts(bytes: &[u8], field: u32, most: usize) -> Result<Option<Vec<&[u8]>>, prost::DecodeError> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (tag, kind) = decode_key(&mut rest)?;
        if tag != field || kind != WireType::LengthDelimited {
            skip_field(
                kind,
                tag,
                &mut rest,
                prost::encoding::DecodeContext::default(),
            )?;
            continue;
        }
        if found.len() == most {
            return Ok(None);
        }
        let length = usize::try_from(decode_varint(&mut rest)?).unwrap_or(usize::MAX);
        let Some((part, after)) = rest.split_at_checked(length) else {
            // The decoder says what is wrong.
            return Ok(Some(found));
        };
        found.push(part);
        rest = after;
    }
    Ok(Some(found))
}

/// How the agent writes and reads.
pub type AgentCodec = Wire<Report, Ack>;
/// How the operator does.
pub type OperatorCodec = Wire<Ack, Report>;

/// Writes `W` and reads `R`.
#[derive(Debug)]
pub struct Wire<W, R>(PhantomData<(W, R)>);

impl<W, R> Default for Wire<W, R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// A message that can be written.
trait Write {
    fn write(&self, buffer: &mut impl BufMut) -> Result<(), Status>;
}

/// A message that can be read.
trait Read: Sized {
    fn read(buffer: impl Buf) -> Result<Self, Status>;
}

impl Write for Report {
    fn write(&self, buffer: &mut impl BufMut) -> Result<(), Status> {
        let written = message_of(self).encode(buffer);
        written.map_err(|error| Status::internal(error.to_string()))
    }
}

impl Read for Report {
    fn read(buffer: impl Buf) -> Result<Self, Status> {
        decode(buffer)
    }
}

impl Write for Ack {
    fn write(&self, _: &mut impl BufMut) -> Result<(), Status> {
        Ok(())
    }
}

impl Read for Ack {
    fn read(mut buffer: impl Buf) -> Result<Self, Status> {
        buffer.advance(buffer.remaining());
        Ok(Self)
    }
}

impl<W, R> Codec for Wire<W, R>
where
    W: Write + Send + 'static,
    R: Read + Send + 'static,
{
    type Encode = W;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<W: Write, R> Encoder for Wire<W, R> {
    type Item = W;
    type Error = Status;

    fn encode(&mut self, item: W, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.write(to)
    }
}

impl<W, R: Read> Decoder for Wire<W, R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::read(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sluice_signals::Voice;

    use super::*;

    fn pool(name: &str) -> PoolTally {
        let mut tally = Tally::default();
        tally.add(Voice {
            outcome: Outcome::Replied,
            first_byte: Some(Duration::from_millis(40)),
        });
        tally.add(Voice {
            outcome: Outcome::Refused,
            first_byte: None,
        });
        PoolTally {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            tally,
        }
    }

    fn report(seconds: usize, pools: usize) -> Report {
        let pools: Vec<PoolTally> = (0..pools).map(|n| pool(&format!("pool-{n}"))).collect();
        let seconds = (0..seconds as u64).map(|number| Second {
            number,
            pools: pools.clone(),
        });
        Report {
            session: u64::MAX,
            seconds: seconds.collect(),
        }
    }

    fn bytes(report: &Report) -> Vec<u8> {
        let mut bytes = Vec::new();
        report.write(&mut bytes).expect("room");
        bytes
    }

    #[test]
    fn a_report_reads_as_it_was() {
        for (seconds, pools) in [(0, 0), (1, 0), (MAX_SECONDS, 3), (1, MAX_POOLS)] {
            let report = report(seconds, pools);
            assert_eq!(decode(&bytes(&report)[..]).expect("a report"), report);
            assert_eq!(bytes(&report).len(), encoded_bytes(&report));
        }
    }

    #[test]
    fn the_largest_second_fits() {
        let mut most = pool("p");
        most.namespace = "n".repeat(63);
        most.name = "p".repeat(253);
        most.tally.outcomes = [u32::MAX; Outcome::COUNT];
        most.tally.first_bytes = Times([u32::MAX; TIME_CLASSES]);
        let second = Second {
            number: u64::MAX,
            pools: vec![most; MAX_POOLS],
        };
        let report = Report {
            session: u64::MAX,
            seconds: vec![second],
        };
        let bytes = bytes(&report);
        assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{}", bytes.len());
        assert_eq!(decode(&bytes[..]).expect("a report"), report);
    }

    #[test]
    fn more_than_the_limits_is_refused_before_it_takes_memory() {
        let code = |report: &Report| decode(&bytes(report)[..]).map_err(|status| status.code());
        let invalid = Err(tonic::Code::InvalidArgument);
        assert_eq!(code(&report(MAX_SECONDS + 1, 0)), invalid);
        assert_eq!(code(&report(1, MAX_POOLS + 1)), invalid);
        // Seconds of two bytes each, as many as fit.
        let empty = [0x12, 0].repeat(MAX_MESSAGE_BYTES / 2);
        assert!(decode(&empty[..]).is_err());
        let mut long = report(1, 1);
        long.seconds[0].pools[0].name = "p".repeat(254);
        assert_eq!(code(&long), invalid);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for bytes in [&[0x12, 0x7f][..], &[0xff; 20], &[0x0a], &[0x12, 2, 0x12, 9]] {
            let code = decode(bytes).map_err(|status| status.code());
            assert_eq!(code, Err(tonic::Code::InvalidArgument), "{bytes:?}");
        }
    }

    #[test]
    fn fields_of_later_versions_are_passed_over() {
        let known = report(1, 1);
        let mut later = bytes(&known);
        // Field 9, three bytes.
        later.extend([0x4a, 3, 1, 2, 3]);
        assert_eq!(decode(&later[..]).expect("a report"), known);
    }
}
