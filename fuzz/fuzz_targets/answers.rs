//! What a destination may say, right or not, and what that is to a source that knows the protocol.

use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use serde_json::{Value, json};

use crate::stream::Forged;

/// The longest message that is JSON.
const LONGEST: usize = 1 << 20;

/// What is asked of a source, and what it hears. Bytes that are 0 or absent make a move as it should
/// be, and most others do not differ much: else hardly any input would come as far as to a commit.
#[derive(Debug)]
pub struct Input {
    pub hello: Option<[u8; 16]>,
    pub dry_run: bool,
    pub paused: bool,
    pub resume_fails: bool,
    /// Rounds in which the guest writes.
    pub writes: u8,
    pub messages: Vec<Message>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(from: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let hello = rarely(from)?.then(|| from.arbitrary()).transpose()?;
        let (dry_run, paused, resume_fails) = (rarely(from)?, from.arbitrary()?, from.arbitrary()?);
        let writes = from.int_in_range(0..=7)?;
        let mut messages = Vec::new();
        for honest in [Message::accept, Message::ready, Message::started] {
            match from.arbitrary::<u8>()? {
                0..200 => messages.push(honest(from)?),
                200..210 => break,
                210.. => messages.push(from.arbitrary()?),
            }
        }
        if rarely(from)? {
            messages.push(from.arbitrary()?);
        }
        Ok(Self {
            hello,
            dry_run,
            paused,
            resume_fails,
            writes,
            messages,
        })
    }
}

/// Once in 32 times.
fn rarely(from: &mut Unstructured<'_>) -> arbitrary::Result<bool> {
    Ok(from.arbitrary::<u8>()? >= 248)
}

/// Some bytes, rarely many times.
#[derive(Debug)]
pub struct Bytes(Vec<u8>);

impl<'a> Arbitrary<'a> for Bytes {
    fn arbitrary(from: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mut bytes = vec![0; from.int_in_range(0..=31)?];
        from.fill_buffer(&mut bytes)?;
        let times = match rarely(from)? {
            true => from.int_in_range(0..=6000)?,
            false => 1,
        };
        Ok(Self(bytes.repeat(times)))
    }
}

/// The same as characters.
#[derive(Debug)]
pub struct Text(String);

impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(from: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let Bytes(bytes) = from.arbitrary()?;
        Ok(Self(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[derive(Arbitrary, Debug)]
pub enum Message {
    Answer {
        who: Text,
        refusals: [Text; 2],
        /// How often they come, as a power of two.
        times: u8,
    },
    Ready,
    Started(Option<[Text; 5]>),
    Failed(Bytes),
    /// An answer or a word that the VM runs, with a field that neither has.
    Strange {
        is_answer: bool,
        field: Text,
    },
    Other {
        kind: u8,
        contents: Bytes,
    },
    /// Not a frame.
    Raw(Bytes),
    /// A frame whose header says another length.
    Lies {
        kind: u8,
        length: u32,
        contents: Bytes,
    },
}

/// What a message is to a source that knows the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    Accepts,
    Refuses,
    Ready,
    Started,
    Failed,
    /// Nothing that a destination may say.
    None,
}

impl Message {
    const ANSWER: u32 = 2;
    const READY: u32 = 8;
    const STARTED: u32 = 10;
    const FAILED: u32 = 11;

    fn accept(from: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        Ok(Self::Answer {
            who: from.arbitrary()?,
            refusals: [Text(String::new()), Text(String::new())],
            times: 0,
        })
    }

    fn ready(_: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        Ok(Self::Ready)
    }

    fn started(from: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        Ok(Self::Started(from.arbitrary()?))
    }

    pub fn add_to(&self, stream: &mut Forged) {
        match self {
            Self::Answer { .. } => stream.frame(Self::ANSWER, self.json().as_bytes()),
            Self::Ready => stream.frame(Self::READY, &[]),
            Self::Started(_) => stream.frame(Self::STARTED, self.json().as_bytes()),
            Self::Failed(why) => stream.frame(Self::FAILED, &why.0),
            Self::Strange { is_answer, .. } => {
                let kind = [Self::STARTED, Self::ANSWER][usize::from(*is_answer)];
                stream.frame(kind, self.json().as_bytes());
            }
            Self::Other { kind, contents } => stream.frame((*kind).into(), &contents.0),
            Self::Raw(bytes) => stream.bytes.extend(&bytes.0),
            Self::Lies {
                kind,
                length,
                contents,
            } => stream.frame_with((*kind).into(), *length, &contents.0),
        }
    }

    /// How often the refusals of an answer come: at most more often than the longest message
    /// has room for.
    fn times(times: u8) -> usize {
        match times % 20 {
            0 => 0,
            power => 1 << (power - 1),
        }
    }

    /// The contents of what is JSON.
    fn json(&self) -> String {
        match self {
            Self::Answer {
                who,
                refusals,
                times,
            } => {
                let refusals = refusals.each_ref().map(|it| &it.0);
                let most = LONGEST / refusals.map(|it| it.len() + 3).iter().sum::<usize>() + 1;
                let refusals = refusals.repeat(Self::times(*times).min(most));
                json!({ "who": who.0, "counter_frequency_hz": 25_000_000, "wall_error_ns": null,
                        "refusals": refusals })
            }
            Self::Started(words) => json!({ "record": words.as_ref().map(record) }),
            // No field's name begins so.
            Self::Strange { field, .. } => json!({ format!("X{}", field.0): null }),
            _ => Value::Null,
        }
        .to_string()
    }

    /// `None` where it depends on what comes after.
    pub fn meaning(&self) -> Option<Meaning> {
        Some(match self {
            Self::Answer { .. } | Self::Started(_) if self.json().len() > LONGEST => Meaning::None,
            Self::Answer { times, .. } if Self::times(*times) > 0 => Meaning::Refuses,
            Self::Answer { .. } => Meaning::Accepts,
            Self::Ready => Meaning::Ready,
            Self::Started(_) => Meaning::Started,
            // What is too long is no word of the destination.
            Self::Failed(why) if why.0.len() > 4096 => Meaning::None,
            Self::Failed(_) => Meaning::Failed,
            Self::Strange { .. } => Meaning::None,
            Self::Other { kind, .. } => match u32::from(*kind) {
                Self::ANSWER | Self::READY | Self::STARTED | Self::FAILED => return None,
                _ => Meaning::None,
            },
            Self::Raw(_) | Self::Lies { .. } => return None,
        })
    }
}

fn record(words: &[Text; 5]) -> Value {
    let [event, cause, policy, source, distance] = words.each_ref().map(|it| &it.0);
    let reading = json!({ "host": 1, "guest": 1, "offset": 0, "frequency_hz": 25_000_000 });
    json!({
        "sequence": 1, "wall_ns": 1, "event": event, "cause": cause, "policy": policy,
        "gap": { "ns": 1, "ticks": 1, "error_ns": null, "source": source },
        "hidden_ns": 0, "shown_ticks": 1, "clamped": false, "before": reading, "after": reading,
        "live": { "pv_before": 1, "pv_after": 1, "distance": distance, "hold_ticks": 0 },
        "timers": null, "unanswered_ms": null, "unfinished_ms": null,
    })
}
