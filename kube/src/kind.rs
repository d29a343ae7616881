//! A program's list of what it watches.

use std::fmt;

use futures::future::BoxFuture;
use tokio::sync::mpsc::Sender;

use crate::watch::{self, Server};
use crate::watched::{Index, Message, Watched};

type Start<I> = fn(Server<<I as Index>::Answer>, Sender<Message<I>>) -> BoxFuture<'static, ()>;

/// A kind in a program's list of what it watches.
pub struct Kind<I: Index> {
    /// Its name in metrics and messages.
    pub name: &'static str,
    watch: Start<I>,
    is_complete: fn(&mut I) -> bool,
    expect_list: fn(&mut I),
    count: fn(&mut I) -> usize,
}

impl<I: Index> Kind<I> {
    /// The entry of a kind.
    pub const fn of<W: Watched<Index = I>>() -> Self {
        Self {
            name: W::NAME,
            watch: |server, queue| Box::pin(watch::run::<W>(server, queue)),
            is_complete: |index| W::store(index).is_complete(),
            expect_list: |index| W::store(index).expect_list(),
            count: |index| W::store(index).objects.len(),
        }
    }

    /// Watches the kind until nobody listens.
    pub fn watch(
        &self,
        server: Server<I::Answer>,
        queue: Sender<Message<I>>,
    ) -> BoxFuture<'static, ()> {
        (self.watch)(server, queue)
    }

    /// Whether a list was complete once.
    pub fn is_complete(&self, index: &mut I) -> bool {
        (self.is_complete)(index)
    }

    /// The known objects of the kind stay, but it takes a new list to be complete.
    pub fn expect_list(&self, index: &mut I) {
        (self.expect_list)(index);
    }

    /// How many objects there are.
    pub fn count(&self, index: &mut I) -> usize {
        (self.count)(index)
    }
}

impl<I: Index> fmt::Debug for Kind<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kind").field(&self.name).finish()
    }
}
