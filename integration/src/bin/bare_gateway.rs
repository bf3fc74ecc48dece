//! What `GET /federate/index` is measured against: an actix-web handler that gives the bytes of one file, and
//! nothing else. Same library, same number of workers, no node behind it.
//!
//! `bare_gateway WORKERS FILE` prints `READY host:port`.

use std::io::{self, Write};

use actix_web::{App, HttpResponse, HttpServer, web};
use bytes::Bytes;

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(workers), Some(file)) = (args.next().and_then(|n| n.parse().ok()), args.next())
    else {
        return Err(io::Error::other("bare_gateway WORKERS FILE"));
    };
    let body = Bytes::from(std::fs::read(file)?);
    let give = move |body: web::Data<Bytes>| async move {
        HttpResponse::Ok()
            .content_type("application/x-ndjson")
            .body(body.get_ref().clone())
    };
    actix_web::rt::System::new().block_on(async move {
        let data = web::Data::new(body);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(data.clone())
                .default_service(web::to(give))
        })
        .workers(workers)
        .bind("127.0.0.1:0")?;
        for address in server.addrs() {
            writeln!(io::stdout(), "READY {address}")?;
        }
        server.run().await
    })
}
