//! How a connection went.

/// How a server met a connection. Only the first exchange is judged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// It sent data.
    Replied,
    /// It reset the attempt.
    Refused,
    /// It did not answer the attempt within three seconds.
    Unanswered,
    /// It reset the connection before it had sent data.
    Reset,
    /// It ended the connection before it had sent data, though its client had sent some.
    Closed,
    /// It has sent no data within five seconds after its client had.
    Silent,
    /// It was not asked anything: its client left, or has sent no data within five seconds.
    Unasked,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// All of them, in their order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Replied,
        Self::Refused,
        Self::Unanswered,
        Self::Reset,
        Self::Closed,
        Self::Silent,
        Self::Unasked,
    ];

    /// As metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replied => "replied",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Unasked => "unasked",
        }
    }

    /// Whether the server failed its client.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Replied | Self::Unasked)
    }
}
