//! Watched kinds. Each is one implementation of [`Watched`] and one line in a program's list of [`crate::Kind`]s.
//!
//! All watches send into one bounded queue, as [`Message`]s that know by themselves how they are taken into the program's
//! [`Index`].

use std::fmt;

use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::error::RequestError;
use crate::object::Event;
use crate::store::{Change, MAX_OBJECTS, Missed, Store};

/// The API server's objects as a program knows them.
pub trait Index: Sized + 'static {
    /// The answer to the question that is asked after every list.
    type Answer: Send + 'static;

    /// Looks at the answer that came with a list. A list that is not believed is not taken in.
    fn believes(&mut self, answer: Self::Answer) -> bool;
    /// A kind is watched, perhaps again.
    fn works(&mut self, kind: &'static str);
    /// A kind cannot be listed or watched; it is tried again.
    fn failed(&mut self, kind: &'static str, verb: &'static str, error: RequestError);
    /// An object is not taken in as it is; this is told once.
    fn missed(&mut self, kind: &'static str, object: Missed);
}

/// A kind that is watched.
pub trait Watched: 'static {
    /// Where the news go.
    type Index: Index;
    /// An object as it is decoded. It must decode whatever the object says: one that cannot be read hides no other.
    type Object: Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static;
    /// The part of an object that is kept.
    type Kept: PartialEq + Send + 'static;
    /// The name in metrics and messages.
    const NAME: &'static str;
    /// Selects the objects; without it all count.
    const LABELS: Option<&'static str> = None;
    /// How many objects are read of a list, at least; what is left out beyond is the store's to tell.
    const MAX_OBJECTS: usize = MAX_OBJECTS;
    /// Whether an API server may lack this kind for good. It is asked for less often then.
    const MAY_BE_ABSENT: bool = false;

    /// Where the objects are. `namespace` is Sluice's own.
    fn api(client: &Client, namespace: &str) -> Api<Self::Object>;
    /// Takes what matters from an object, or says why it cannot be read.
    fn keep(object: Self::Object) -> Result<Self::Kept, String>;
    /// Where what is kept is.
    fn store(index: &mut Self::Index) -> &mut Store<Self::Kept>;
    /// Takes in what has changed, after a list also when nothing has.
    fn changed(index: &mut Self::Index, changes: Vec<Change<Self::Kept>>);
}

/// The subject of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topic {
    /// A list begins.
    Begun,
    /// A complete list.
    Listed,
    /// A watch runs.
    Works,
    /// An object that was added, changed or deleted.
    Changed,
    /// A failure.
    Failed,
}

/// A message from a watch.
pub struct Message<I> {
    /// The kind's name.
    pub kind: &'static str,
    /// The sort of its event.
    pub topic: Topic,
    /// The state of the API server that was watched; see [`crate::identity::World::current`].
    pub world: u64,
    take: Box<dyn FnOnce(&mut I) + Send>,
}

impl<I: Index> Message<I> {
    /// Of an event.
    pub fn new<W: Watched<Index = I>>(world: u64, event: Event<W::Kept, I::Answer>) -> Self {
        let topic = match &event {
            Event::Begin => Topic::Begun,
            Event::List(..) => Topic::Listed,
            Event::Works => Topic::Works,
            Event::Apply(_) | Event::Delete(..) => Topic::Changed,
            Event::Failed { .. } => Topic::Failed,
        };
        Self {
            kind: W::NAME,
            topic,
            world,
            take: Box::new(|index| take::<W>(index, event)),
        }
    }

    /// Takes it in.
    pub fn take(self, index: &mut I) {
        (self.take)(index);
    }
}

impl<I> fmt::Debug for Message<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("kind", &self.kind)
            .field("topic", &self.topic)
            .field("world", &self.world)
            .finish_non_exhaustive()
    }
}

/// Takes an event of a kind into the index.
pub fn take<W: Watched>(index: &mut W::Index, event: Event<W::Kept, <W::Index as Index>::Answer>) {
    let changes = match event {
        Event::Begin => return W::store(index).begin(),
        Event::Works => return index.works(W::NAME),
        Event::Failed { verb, error } => return index.failed(W::NAME, verb, error),
        Event::List(items, answer) => {
            if !index.believes(answer) {
                return;
            }
            W::store(index).list(items)
        }
        Event::Apply(item) => W::store(index).apply(item).into_iter().collect(),
        Event::Delete(key, stamp) => W::store(index).delete(&key, &stamp).into_iter().collect(),
    };
    W::changed(index, changes);
    for object in W::store(index).take_missed() {
        index.missed(W::NAME, object);
    }
}
