CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT, since TEXT);
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, category TEXT, price REAL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, ordered_on TEXT, status TEXT);
CREATE TABLE items (order_id INTEGER, product_id INTEGER, quantity INTEGER);

-- Other rows, with what the first database lacks: products that nobody ordered, a missing
-- city, customers with equal names, an order without items.
INSERT INTO customers VALUES
    (1, 'Fay Holm', 'Kiel', '2020-01-01'), (2, 'Gus Lind', NULL, '2021-07-07'), (3, 'Fay Holm', 'Bremen', '2022-02-02');
INSERT INTO products VALUES
    (1, 'desk', 'home', 120.0), (2, 'novel', 'books', 9.5), (3, 'robot', 'toys', 60.0), (4, 'globe', 'books', 49.9),
    (5, 'ball', 'toys', 5.0);
INSERT INTO orders VALUES
    (1, 1, '2023-12-31', 'paid'), (2, 2, '2024-01-01', 'shipped'), (3, 3, '2024-01-01', 'cancelled'),
    (4, 3, '2024-06-06', 'paid'), (5, 2, '2024-07-01', 'cancelled');
INSERT INTO items VALUES
    (1, 1, 1), (1, 2, 5), (2, 2, 1), (3, 3, 2), (4, 2, 2), (4, 3, 1);
