CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT, since TEXT);
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, category TEXT, price REAL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, ordered_on TEXT, status TEXT);
CREATE TABLE items (order_id INTEGER, product_id INTEGER, quantity INTEGER);

INSERT INTO customers VALUES
    (1, 'Ada Blum', 'Bremen', '2021-03-04'), (2, 'Ben Ott', 'Berlin', '2022-11-20'),
    (3, 'Cem Aydin', 'Bremen', '2023-01-15'), (4, 'Dora Funk', 'Kiel', '2023-06-30'),
    (5, 'Emil Rau', 'Berlin', '2024-02-29');
INSERT INTO products VALUES
    (1, 'lamp', 'home', 40.0), (2, 'chair', 'home', 85.5), (3, 'novel', 'books', 12.0),
    (4, 'atlas', 'books', 49.9), (5, 'kite', 'toys', 19.0), (6, 'puzzle', 'toys', 12.0);
INSERT INTO orders VALUES
    (1, 1, '2024-01-05', 'shipped'), (2, 1, '2024-02-11', 'paid'), (3, 2, '2024-02-12', 'cancelled'),
    (4, 3, '2024-03-01', 'shipped'), (5, 3, '2024-03-09', 'shipped'), (6, 3, '2024-04-18', 'paid'),
    (7, 5, '2024-05-02', 'shipped');
INSERT INTO items VALUES
    (1, 1, 2), (1, 3, 1), (2, 4, 1), (3, 2, 4), (4, 3, 3), (4, 6, 1), (5, 5, 2), (6, 1, 1), (7, 2, 1), (7, 3, 2);
