//! What a request that waits for its answer costs in memory: the futures that hold it. A buffer in one of their rarer
//! branches is paid by every connection, so those branches are boxed.

use super::{connection, pipeline, upstream};

/// Of the two futures of a connection that waits for its answer.
const MOST_BYTES: usize = 12 << 10;

fn of_serving<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
    size_of::<F>()
}

fn of_answering<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
    size_of::<F>()
}

fn of_sending<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_parked_request_is_small() {
    let serving = of_serving(connection::serve);
    let answering = of_answering(pipeline::answer);
    let sending = of_sending(upstream::send);
    assert!(
        serving + answering < MOST_BYTES,
        "serving {serving}, answering {answering}, sending in it {sending}"
    );
}
